//! The modules that this process has loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};

use super::errors;
use crate::provider::{ProviderError, ProviderErrorKind};

/// By process, since a forked child inherits the map, but none of the modules' state is good in it;
/// what it inherits is never touched, not even to be dropped.
static MODULES: Mutex<BTreeMap<(u32, PathBuf), Arc<Module>>> = Mutex::new(BTreeMap::new());

/// A module in this process. All that can wait is in methods, which are for the threads of
/// [`crate::call`].
pub(super) struct Module {
    path: PathBuf,
    /// Whether an ancestor of this process has initialized it and then forked.
    is_inherited: bool,
    state: Mutex<State>,
    /// The sessions that are open, or about to be.
    uses: AtomicUsize,
    /// Held while logging in, so that no two threads try the same wrong PIN.
    login: Mutex<()>,
}

#[derive(Default)]
struct State {
    library: Option<Pkcs11>,
    is_initialized: bool,
    /// Whether it was another part of this process that initialized it, whose it then is to finalize.
    is_of_others: bool,
}

impl Module {
    /// The module at this path, which is loaded and initialized at its first use.
    pub(super) fn at(path: &Path) -> Arc<Self> {
        let this_process = process::id();
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(&(this_process, path.to_owned())) {
            return Arc::clone(module);
        }
        let module = Arc::new(Self {
            path: path.to_owned(),
            is_inherited: modules.keys().any(|(_, loaded)| loaded == path),
            state: Mutex::default(),
            uses: AtomicUsize::new(0),
            login: Mutex::new(()),
        });
        modules.insert((this_process, path.to_owned()), Arc::clone(&module));
        module
    }

    /// The module, initialized, for one session.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Use, ProviderError> {
        let mut state = lock(&self.state);
        let library = match &state.library {
            Some(library) => library.clone(),
            None => {
                let library = Pkcs11::new(&self.path)
                    .map_err(|error| errors::not_loaded(&self.path.to_string_lossy(), &error))?;
                state.library.insert(library).clone()
            }
        };
        if !state.is_initialized {
            state.is_of_others = self.initialize(&library)?;
            state.is_initialized = true;
        }
        self.uses.fetch_add(1, Ordering::AcqRel);
        Ok(Use { module: Arc::clone(self), library })
    }

    /// Initializes it, by the operating system's locks. Returns whether others have done so.
    fn initialize(&self, library: &Pkcs11) -> Result<bool, ProviderError> {
        let initialize =
            || library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let is_initialized_already =
            |error: &Error| errors::value(error) == Some(RvError::CryptokiAlreadyInitialized);
        match initialize() {
            Ok(()) => Ok(false),
            // What the parent of this process did does not count: section 5.4 of the specification.
            Err(error) if is_initialized_already(&error) && self.is_inherited => library
                .clone()
                .finalize()
                .and_then(|()| initialize())
                .map(|()| false)
                .map_err(|error| self.not_initialized(&error)),
            Err(error) if is_initialized_already(&error) => Ok(true),
            Err(error) => Err(self.not_initialized(&error)),
        }
    }

    fn not_initialized(&self, error: &Error) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("module \"{}\": {}", self.path.display(), errors::describe(error)),
        )
        .with_hint(
            "The client software of the hardware security module is not set up for the server's \
             operating-system user: its configuration, its environment variables, the rights of \
             its files.",
        )
    }

    /// Finalizes it if nothing in this process uses it, so that its next use starts from nothing.
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        if state.is_of_others || self.uses.load(Ordering::Acquire) != 0 {
            return;
        }
        if let Some(library) = state.library.clone().filter(|_| state.is_initialized) {
            // If it can't, it is initialized already when it is next used, and used as it is.
            let _ = library.finalize();
            state.is_initialized = false;
        }
    }

    /// Waits until no other thread is logging in.
    pub(super) fn login_turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.login)
    }
}

/// A module that is initialized, for as long as this is there.
pub(super) struct Use {
    pub(super) module: Arc<Module>,
    pub(super) library: Pkcs11,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.module.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the locks guard is consistent whatever a thread that panicked was at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
