//! Our encryption and that of matrix-sdk-crypto, in both directions.

mod history;
mod keys;
mod messages;
mod verification;

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
