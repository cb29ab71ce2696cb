//! Services by name: what a question about one is answered.
//!
//! Owns the names and the rule for who is named: what requests are routed to, and nothing else. It is pure; bytes are
//! [`wire`]'s, sockets [`server`]'s.
//!
//! ```text
//! PROC.APP.DOMAIN         A, AAAA: instances of the own zone, of others only where that has none
//!                         SRV: all, those of the own zone first (by priority)
//! PROC.APP.ZONE.DOMAIN    A, AAAA, SRV: that zone's
//! ID.PROC.APP.DOMAIN      A, AAAA: one instance, as SRV names it. No proc's name begins with a digit
//! ```

pub mod server;
pub mod wire;

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA, SRV},
    },
};
use visor::names::{AppName, HostName, InstanceId, ZoneName};

use crate::{
    directory::{Directory, Place, Places},
    routes::ServiceId,
};

/// How long an answer may be kept, in seconds: what has stopped is known to everyone a second later.
pub const TTL: u32 = 1;

/// How many instances an answer names at most. Another answer names others.
pub const MOST: usize = 64;

/// What is answered for.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The domain below which services have their names.
    domain: Name,
    /// Where this proxy stands.
    own: ZoneName,
}

impl Zone {
    /// The names below a domain, as they are seen from a zone.
    pub fn new(domain: &HostName, own: ZoneName) -> Self {
        let mut domain = Name::from_ascii(domain.as_str()).expect("a host name is a name");
        domain.set_fqdn(true);
        Zone { domain, own }
    }
}

/// An answer, by its sections.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What became of it.
    pub code: ResponseCode,
    /// The records that were asked for.
    pub answers: Vec<Record>,
    /// The addresses of the names in them.
    pub additionals: Vec<Record>,
    /// How long it may be believed that there is nothing; with an empty answer alone.
    pub authority: Option<Record>,
}

/// What a name stands for.
enum Meaning<'a> {
    /// These instances.
    Instances(Vec<(InstanceId, &'a ServiceId, &'a Place)>),
    /// The domain itself.
    Apex,
    /// Nothing by itself: there are names below it.
    Between,
    Nothing,
}

/// The answer to a question about a name. `turn` tells which instances come first: let it grow with each question.
pub fn answer(directory: &Directory, zone: &Zone, name: &Name, kind: RecordType, turn: usize) -> Answer {
    let mut answer =
        Answer { code: ResponseCode::NoError, answers: Vec::new(), additionals: Vec::new(), authority: None };
    if !zone.domain.zone_of(name) {
        answer.code = ResponseCode::Refused;
        return answer;
    }
    match meaning(directory, zone, name) {
        Meaning::Nothing => answer.code = ResponseCode::NXDomain,
        Meaning::Between => {}
        Meaning::Apex if kind == RecordType::SOA => answer.answers.push(soa(zone)),
        Meaning::Apex => {}
        Meaning::Instances(mut instances) => {
            if !instances.is_empty() {
                let first = turn % instances.len();
                instances.rotate_left(first);
            }
            // Stable: in turn within each.
            instances.sort_by_key(|(_, _, place)| !is_near(zone, place));
            records(&mut answer, zone, name, kind, &instances);
        }
    }
    if answer.answers.is_empty() {
        answer.authority = Some(soa(zone));
    }
    answer
}

fn is_near(zone: &Zone, place: &Place) -> bool {
    place.zone.as_ref() == Some(&zone.own)
}

fn meaning<'a>(directory: &'a Directory, zone: &Zone, name: &Name) -> Meaning<'a> {
    let below = usize::from(name.num_labels() - zone.domain.num_labels());
    let labels: Option<Vec<String>> = name
        .iter()
        .take(below)
        .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
        .collect();
    let Some(labels) = labels else { return Meaning::Nothing };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let service = |proc: &str, app: &str| {
        let id = ServiceId { app: app.parse().ok()?, proc: proc.parse().ok()? };
        directory.services.get_key_value(&id)
    };
    let is_app = |name: &str| name.parse::<AppName>().is_ok_and(|app| directory.apps.contains(&app));
    let is_zone = |name: &str| name.parse::<ZoneName>().is_ok_and(|zone| directory.zones.contains(&zone));
    let between = |there: bool| if there { Meaning::Between } else { Meaning::Nothing };
    match labels[..] {
        [] => Meaning::Apex,
        [name] => between(is_app(name) || is_zone(name)),
        [proc, app] => match service(proc, app) {
            Some((id, places)) => Meaning::Instances(routed(id, places)),
            None => between(is_app(proc) && is_zone(app)),
        },
        [first, second, third] => {
            if let Ok(instance) = first.parse::<InstanceId>() {
                let places = service(second, third).map(|(id, places)| routed(id, places));
                let mut found = places.unwrap_or_default();
                found.retain(|(id, ..)| *id == instance);
                return if found.is_empty() { Meaning::Nothing } else { Meaning::Instances(found) };
            }
            match service(first, second) {
                Some((id, places)) if is_zone(third) => {
                    let mut found = routed(id, places);
                    found
                        .retain(|(.., place)| place.zone.as_ref().is_some_and(|zone| zone.as_str() == third));
                    Meaning::Instances(found)
                }
                _ => Meaning::Nothing,
            }
        }
        _ => Meaning::Nothing,
    }
}

fn routed<'a>(id: &'a ServiceId, places: &'a Places) -> Vec<(InstanceId, &'a ServiceId, &'a Place)> {
    places.iter().filter(|(_, place)| place.routed).map(|(instance, place)| (*instance, id, place)).collect()
}

/// Puts the records of a kind into an answer. The instances come in the order in which they are to be named, near ones
/// first.
fn records(
    answer: &mut Answer,
    zone: &Zone,
    name: &Name,
    kind: RecordType,
    instances: &[(InstanceId, &ServiceId, &Place)],
) {
    match kind {
        // Of both kinds of addresses where anything is asked for (RFC 8482: one set of records is enough).
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            let near = instances.iter().filter(|(.., place)| is_near(zone, place)).count();
            let named = if near > 0 { &instances[..near] } else { instances };
            // Two instances of one host have one address.
            let mut addresses = BTreeSet::new();
            let distinct = named.iter().filter(|(.., place)| addresses.insert(place.address.ip()));
            let records = distinct.map(|(.., place)| address(name.clone(), place));
            let fits = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
            answer.answers.extend(records.filter(fits).take(MOST));
        }
        RecordType::SRV => {
            for (id, service, place) in instances.iter().take(MOST) {
                let labels = [id.to_string(), service.proc.to_string(), service.app.to_string()];
                let labels = labels.iter().map(String::as_bytes).chain(zone.domain.iter());
                // Only a domain of more than 160 characters leaves no room for it.
                let Ok(target) = Name::from_labels(labels) else { continue };
                let priority = u16::from(!is_near(zone, place));
                let srv = SRV::new(priority, 1, place.address.port(), target.clone());
                answer.answers.push(Record::from_rdata(name.clone(), TTL, RData::SRV(srv)));
                answer.additionals.push(address(target, place));
            }
        }
        _ => {}
    }
}

fn address(name: Name, place: &Place) -> Record {
    let data = match place.address.ip() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name, TTL, data)
}

/// It says how long a name may be believed not to be there. Nothing is ever transferred: its other numbers mean nothing.
fn soa(zone: &Zone) -> Record {
    let hostmaster = zone.domain.prepend_label("hostmaster").unwrap_or_else(|_| zone.domain.clone());
    let soa = SOA::new(zone.domain.clone(), hostmaster, 1, 3600, 600, 86_400, TTL);
    Record::from_rdata(zone.domain.clone(), TTL, RData::SOA(soa))
}
