//! That the fakes speak the services' interfaces, and not what we take them for: the services'
//! official clients use them.

use harness::fakes::{Fake, Service};

#[test]
fn googles_client_takes_the_fake_of_cloud_kms() {
    is_taken(Service::GcpKms, "googles_client_takes_the_fake_of_cloud_kms");
}

#[test]
fn microsofts_clients_take_the_fake_of_key_vault() {
    is_taken(Service::AzureKeyVault, "microsofts_clients_take_the_fake_of_key_vault");
}

fn is_taken(service: Service, test: &str) {
    let Some(fake) = Fake::start(service) else {
        harness::skip(test, "build/python/fakes is missing");
        return;
    };
    let output = fake.test_with_official_client();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // All of them: unittest is content with none.
    assert!(text.contains("Ran 7 tests"), "{text}");
}
