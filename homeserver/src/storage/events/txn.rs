//! Who made an event, and what keeps it from being made twice.

use ruma::OwnedTransactionId;

/// What a local client said to make an event idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Txn {
    /// User, device and endpoint.
    pub(crate) scope: TxnScope,
    /// The client's id.
    pub(crate) id: OwnedTransactionId,
}

/// Within what a transaction id is unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TxnScope(pub(crate) String);

impl TxnScope {
    /// The scope of events that another server made and handed in for this server to pass on, as with
    /// `send_join`. No device has a scope like it.
    pub(crate) fn handed_in() -> Self {
        Self("handed in".to_owned())
    }

    /// The scope of events that this server made in the name of a user of another: the invite of whoever
    /// owns the address that was invited.
    pub(crate) fn for_another() -> Self {
        Self("for another".to_owned())
    }

    /// The scope of events of ours that another server passes on, because we handed them in there.
    pub(crate) fn passed_on() -> Self {
        Self("passed on".to_owned())
    }
}
