/*
 * A PKCS #11 module that hands all calls on to another one (MODULE). While a file (HANGING) is there,
 * C_GetSlotList does not return.
 *
 * As the client libraries of network HSMs do, it frees what its threads use when the process exits. A
 * thread that is still in a call then crashes the process.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long CK_RV;
typedef unsigned long CK_ULONG;
typedef void (*function)(void);

#define CKR_OK 0
#define CKR_GENERAL_ERROR 5

/* CK_FUNCTION_LIST of PKCS #11, version 2.40: a version, and 68 functions in the standard's order. */
struct function_list
{
	unsigned char version[2];
	function	functions[68];
};

#define C_GET_FUNCTION_LIST 3
#define C_GET_SLOT_LIST 4

static struct function_list list;
static CK_RV (*get_slot_list)(unsigned char, CK_ULONG *, CK_ULONG *);

/* What a thread in a call uses. */
static volatile int *volatile state;

static CK_RV
hanging_get_slot_list(unsigned char token_present, CK_ULONG *slots, CK_ULONG *count)
{
	while (access(HANGING, F_OK) == 0)
	{
		*state += 1;
		usleep(1000);
	}
	return get_slot_list(token_present, slots, count);
}

CK_RV
C_GetFunctionList(struct function_list **result)
{
	if (get_slot_list == NULL)
	{
		struct function_list *inner;
		CK_RV		(*get)(struct function_list **);
		void	   *module = dlopen(MODULE, RTLD_NOW | RTLD_LOCAL);

		if (module == NULL)
			return CKR_GENERAL_ERROR;
		*(void **) &get = dlsym(module, "C_GetFunctionList");
		if (get == NULL || get(&inner) != CKR_OK)
			return CKR_GENERAL_ERROR;
		memcpy(&list, inner, sizeof(list));
		*(function *) &get_slot_list = list.functions[C_GET_SLOT_LIST];
		list.functions[C_GET_SLOT_LIST] = (function) hanging_get_slot_list;
		list.functions[C_GET_FUNCTION_LIST] = (function) C_GetFunctionList;
		state = calloc(1, sizeof(*state));
	}
	*result = &list;
	return CKR_OK;
}

__attribute__((destructor)) static void
clean_up(void)
{
	free((void *) state);
	state = NULL;
	usleep(100000);
}
