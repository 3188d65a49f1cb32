//! Which endpoints of the specification are answered: all but those of one list in plain sight.

use std::collections::BTreeSet;

/// Every endpoint that a homeserver serves.
const SPECIFICATION: &str = include_str!("endpoints/specification.txt");
/// Those that this one does not have yet. They answer 404 `M_UNRECOGNIZED`.
const MISSING: &str = include_str!("endpoints/missing.txt");

/// The lines that name an endpoint.
fn listed(text: &str) -> BTreeSet<(String, String)> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(method, path)| (method.to_owned(), nameless(path)))
        .collect()
}

/// A path without the names of its parameters, which differ between the specification and our routes.
fn nameless(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        if segment.starts_with('{') {
            "{}"
        } else {
            segment
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

#[test]
fn every_endpoint_is_answered_or_said_to_be_missing() {
    let routed: BTreeSet<_> = sotto_homeserver::endpoints()
        .into_iter()
        .map(|(method, path)| (method, nameless(&path)))
        .collect();
    let answers = |(method, path): &(String, String)| {
        routed.contains(&(method.clone(), path.clone()))
            || routed.contains(&("*".to_owned(), path.clone()))
    };
    let specified = listed(SPECIFICATION);
    let missing = listed(MISSING);
    let unanswered: BTreeSet<_> = specified.iter().filter(|e| !answers(e)).cloned().collect();
    let forgotten: Vec<_> = unanswered.difference(&missing).collect();
    let done: Vec<_> = missing.difference(&unanswered).collect();
    assert!(
        forgotten.is_empty(),
        "not answered and not in missing.txt: {forgotten:#?}"
    );
    assert!(
        done.is_empty(),
        "answered, or not in the specification; take them out of missing.txt: {done:#?}"
    );
    println!(
        "{} of {} endpoints are answered",
        specified.len() - unanswered.len(),
        specified.len()
    );
}
