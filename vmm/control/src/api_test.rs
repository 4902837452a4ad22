//! What a request's body asks the engine for.

use std::time::Duration;

use drogher_migrate::options::{SourceOptions, TimeoutStrategy};

use super::MigrateRequest;

fn options(body: &str) -> SourceOptions {
    serde_json::from_str::<MigrateRequest>(body).expect("a request").options()
}

#[test]
fn what_is_not_said_is_as_the_engine_has_it() {
    assert_eq!(options(r#"{"to":"unix:/x"}"#), SourceOptions::default());
}

#[test]
fn everything_that_is_said_reaches_the_engine() {
    let said = options(
        r#"{"to":"unix:/x","downtime_ms":7,"timeout_s":8,"timeout_strategy":"ignore","verify":true,"page_hash":false}"#,
    );
    let expected = SourceOptions {
        downtime: Duration::from_millis(7),
        timeout: Duration::from_secs(8),
        timeout_strategy: TimeoutStrategy::Ignore,
        verify: true,
        hash_pages: false,
        ..SourceOptions::default()
    };
    assert_eq!(said, expected);
}
