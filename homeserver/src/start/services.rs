//! How the services of a server are put together.

use std::sync::Arc;

use sotto_federation::room::signing::SigningKey;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::StartError;
use crate::{
    api::{Edge, Services},
    clock::Clock,
    config::Config,
    service::{
        account_data::AccountData,
        accounts::Accounts,
        administration::{self, Administration},
        admission::{self, Admission},
        aliases::Aliases,
        appservices::Appservices,
        backfill::Backfill,
        calls::Calls,
        deactivation::Deactivation,
        devices::Devices,
        directory::Directory,
        doors::Doors,
        e2e_keys::E2eKeys,
        events::Events,
        federation::Federation,
        filter::Filters,
        identity::Identity,
        incoming::{self, Incoming},
        key_backup::KeyBackup,
        mail::Mail,
        media::{self, Media},
        membership::{Membership, Remote},
        moderation::Moderation,
        notifications::Notifications,
        old_sync::OldSync,
        policy_servers::PolicyServers,
        presence::Presence,
        previews::Previews,
        profiles::{self, Profiles},
        push_rules::PushRules,
        pushers::Pushers,
        rate_limits::RateLimits,
        receipts::Receipts,
        registration::Registration,
        relations::Relations,
        room_summaries::RoomSummaries,
        rooms::Rooms,
        search::Search,
        server_acl::ServerAcls,
        server_keys::ServerKeys,
        shared_history::SharedHistory,
        shared_secret::SharedSecret,
        sign_on::{self, SignOn},
        spaces::Spaces,
        succession::Succession,
        support::Support,
        sync::{self, Sync},
        third_party_invites::ThirdPartyInvites,
        thread_subscriptions::ThreadSubscriptions,
        threepids::{self, Threepids},
        timeline::Timeline,
        to_device::ToDevice,
        transactions::{self, Transactions},
        typing::Typing,
        uia::{Captcha, Stages, Uia},
        unread::Unread,
        user_directory::UserDirectory,
    },
    storage::Storage,
    worker::{guests::GuestDismisser, room_completer::RoomCompleter, succession::SuccessionWorker},
};

/// Builds each service once, in order, from those before it.
#[expect(
    clippy::too_many_lines,
    reason = "one list, in the order that the services need"
)]
pub(super) fn services(
    config: &Config,
    storage: &Storage,
    clock: &Clock,
    key: &Arc<SigningKey>,
    federation: &Federation,
    stopping: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Edge, StartError> {
    let server_name = config.server_name.clone();
    let base_url = config
        .public_base_url
        .clone()
        .unwrap_or_else(|| format!("https://{server_name}"));
    let limits = RateLimits::new(config.rate_limits.clone(), clock.clone());
    let (files, to_services) = (&config.appservices, federation.clone());
    let appservices = Appservices::load(files, &server_name, to_services, clock.clone())?;
    let accounts = Accounts::new(
        storage.clone(),
        clock.clone(),
        server_name.clone(),
        base_url,
        limits.clone(),
        appservices.clone(),
    );
    let mail = config.email.clone().map(|settings| {
        let tls = rustls::ClientConfig::clone(federation.tls());
        Mail::new(settings, tls, clock.clone())
    });
    let identity = Identity::new(
        federation.guarded().clone(),
        key.clone(),
        server_name.clone(),
    );
    let threepids = Threepids::new(threepids::Parts {
        storage: storage.clone(),
        clock: clock.clone(),
        accounts: accounts.clone(),
        mail,
        identity: identity.clone(),
    });
    let server_keys = ServerKeys::new(
        storage.clone(),
        federation.clone(),
        clock.clone(),
        key.clone(),
    );
    let media = Media::new(media::Parts {
        storage: storage.clone(),
        clock: clock.clone(),
        federation: federation.clone(),
        data_dir: &config.data_dir,
        settings: config.media.clone(),
        tasks: tasks.clone(),
        stopping: stopping.clone(),
    })?;
    tasks.spawn(media.care());
    let previews = Previews::new(
        config.previews.clone(),
        federation.guarded().clone(),
        media.clone(),
        clock.clone(),
    );
    let devices = Devices::new(storage.clone(), accounts.clone());
    let e2e_keys = E2eKeys::new(storage.clone(), federation.clone());
    let refreshing = e2e_keys.clone().refresh(clock.clone(), stopping.clone());
    tasks.spawn(refreshing);
    let to_device = ToDevice::new(storage.clone(), clock.clone(), server_name.clone());
    let events = Events::new(storage.clone());
    let policy_servers = PolicyServers::new(
        storage.clone(),
        events.clone(),
        Arc::new(federation.clone()),
    );
    let timeline = Timeline::new(
        storage.clone(),
        events.clone(),
        policy_servers,
        clock.clone(),
        server_name.clone(),
        key.clone(),
    );
    let incoming = Incoming::new(
        storage.clone(),
        timeline.clone(),
        ServerAcls::new(events.clone()),
        Arc::new(incoming::Remote::new(
            federation.clone(),
            server_keys.clone(),
        )),
    );
    let acls = ServerAcls::new(events.clone());
    let shared_history = SharedHistory::new(storage.clone(), timeline.clone(), acls);
    let doors = Doors::new(storage.clone(), events.clone());
    let admission = Admission::new(admission::Parts {
        storage: storage.clone(),
        timeline: timeline.clone(),
        doors: doors.clone(),
        history: shared_history.clone(),
        incoming: incoming.clone(),
        clock: clock.clone(),
        key: key.clone(),
    });
    let summaries = RoomSummaries::new(storage.clone(), events.clone());
    let aliases = Aliases::new(
        storage.clone(),
        timeline.clone(),
        summaries.clone(),
        federation.clone(),
        appservices.clone(),
    );
    let directory = Directory::new(
        storage.clone(),
        timeline.clone(),
        summaries.clone(),
        federation.clone(),
    );
    let user_directory = UserDirectory::new(storage.clone(), timeline.clone(), summaries.clone());
    let spaces = Spaces::new(
        storage.clone(),
        timeline.clone(),
        summaries.clone(),
        federation.clone(),
        clock.clone(),
    );
    let account_data = AccountData::new(storage.clone());
    let push_rules = PushRules::new(storage.clone());
    let succession = Succession::new(
        storage.clone(),
        timeline.clone(),
        account_data.clone(),
        push_rules.clone(),
    );
    let successor = SuccessionWorker::new(storage.clone(), succession.clone(), stopping.clone());
    tasks.spawn(successor.run());
    let relations = Relations::new(storage.clone(), timeline.clone());
    let search = Search::new(storage.clone(), timeline.clone(), relations.clone());
    let thread_subscriptions = ThreadSubscriptions::new(storage.clone(), timeline.clone());
    let rooms = Rooms::new(
        storage.clone(),
        timeline.clone(),
        aliases.clone(),
        succession.clone(),
        config.default_room_version.clone(),
    );
    let remote = Remote::new(
        storage.clone(),
        timeline.clone(),
        federation.clone(),
        server_keys.clone(),
        incoming.clone(),
        clock.clone(),
        key.clone(),
    );
    let lifetime = (tasks.clone(), stopping.clone());
    let completer = RoomCompleter::new(storage.clone(), remote.clone(), lifetime.clone());
    tasks.spawn(completer.run());
    let membership = Membership::new(
        storage.clone(),
        timeline.clone(),
        remote,
        doors,
        succession,
        lifetime,
        appservices.clone(),
    );
    let third_party_invites = ThirdPartyInvites::new(
        timeline.clone(),
        membership.clone(),
        federation.clone(),
        identity,
    );
    let uia = Uia::new(
        storage.clone(),
        clock.clone(),
        Stages {
            accounts: accounts.clone(),
            threepids: threepids.clone(),
            captcha: config
                .captcha
                .clone()
                .map(|settings| Captcha::new(settings, federation.guarded().clone())),
            terms: config.terms.clone(),
            sso: config.cas.is_some(),
        },
    );
    let sign_on = SignOn::new(sign_on::Parts {
        storage: storage.clone(),
        accounts: accounts.clone(),
        uia: uia.clone(),
        clock: clock.clone(),
        client: federation.guarded().clone(),
        config,
    })?;
    let deactivation = Deactivation::new(
        storage.clone(),
        accounts.clone(),
        membership.clone(),
        threepids.clone(),
        tasks.clone(),
        stopping.clone(),
    );
    tasks.spawn(deactivation.clone().resume());
    let administration = Administration::new(administration::Parts {
        storage: storage.clone(),
        clock: clock.clone(),
        accounts: accounts.clone(),
        devices: devices.clone(),
        deactivation: deactivation.clone(),
        membership: membership.clone(),
        summaries,
    });
    let dismisser = GuestDismisser::new(storage.clone(), membership.clone(), stopping.clone());
    tasks.spawn(dismisser.run());
    let profiles = Profiles::new(profiles::Parts {
        storage: storage.clone(),
        timeline: timeline.clone(),
        federation: federation.clone(),
        clock: clock.clone(),
        settings: config.profiles,
        appservices: appservices.clone(),
    });
    let receipts = Receipts::new(storage.clone(), events.clone(), clock.clone());
    let presence = Presence::new(storage.clone(), clock.clone(), config.presence);
    tasks.spawn(presence.clone().run(stopping.clone()));
    let typing = Typing::new(storage.clone(), clock.clone());
    tasks.spawn(typing.clone().expire(stopping.clone()));
    let backfill = Backfill::new(
        storage.clone(),
        timeline.clone(),
        incoming.clone(),
        federation.clone(),
        clock.clone(),
    );
    let transactions = Transactions::new(transactions::Parts {
        storage: storage.clone(),
        clock: clock.clone(),
        e2e_keys: e2e_keys.clone(),
        incoming,
        presence: presence.clone(),
        receipts: receipts.clone(),
        to_device: to_device.clone(),
        typing: typing.clone(),
        tasks: tasks.clone(),
        server_name,
        delegated_to: config.federation.delegated_to.clone(),
    });
    let unread = Unread::new(
        storage.clone(),
        events.clone(),
        timeline.heads.clone(),
        push_rules.clone(),
    );
    let notifications = Notifications::new(
        storage.clone(),
        events.clone(),
        push_rules.clone(),
        unread.clone(),
    );
    let sync = Sync::new(sync::Parts {
        storage: storage.clone(),
        events,
        keys: e2e_keys.clone(),
        presence: presence.clone(),
        relations: relations.clone(),
        thread_subscriptions: thread_subscriptions.clone(),
        timeline: timeline.clone(),
        typing: typing.clone(),
        unread: unread.clone(),
        stopping: stopping.clone(),
    });
    let moderation = Moderation::new(
        storage.clone(),
        clock.clone(),
        accounts.clone(),
        timeline.clone(),
    );
    let registration = Registration::new(accounts.clone(), uia.clone(), threepids.clone(), config);
    let old_sync = OldSync::new(
        storage.clone(),
        sync.clone(),
        timeline.clone(),
        presence.clone(),
        typing.clone(),
        stopping.clone(),
    );
    let shared_secret = SharedSecret::new(accounts.clone(), clock.clone(), config);
    Ok(Edge::new(Services {
        account_data,
        accounts,
        administration,
        admission,
        aliases,
        appservices,
        calls: Calls::new(config.turn.clone(), clock.clone()),
        clock: clock.clone(),
        backfill,
        deactivation,
        devices,
        directory,
        filters: Filters::new(storage.clone()),
        e2e_keys,
        key_backup: KeyBackup::new(storage.clone()),
        media,
        membership,
        moderation,
        old_sync,
        presence,
        previews,
        profiles,
        notifications,
        push_rules,
        pushers: Pushers::new(storage.clone(), clock.clone()),
        unread,
        rate_limits: limits,
        receipts,
        registration,
        relations,
        rooms,
        search,
        server_keys,
        shared_history,
        shared_secret,
        sign_on,
        spaces,
        support: Support::new(config),
        sync,
        tasks: tasks.clone(),
        third_party_invites,
        thread_subscriptions,
        threepids,
        timeline,
        transactions,
        typing,
        to_device,
        uia,
        user_directory,
    }))
}
