//! Services by name: the answers to DNS questions about services.
//!
//! Owns the names and the rule for which instances are named: only those to which requests are routed. It is pure;
//! [`wire`] reads and writes the packets, [`server`] has the sockets.
//!
//! ```text
//! PROC.APP.DOMAIN         A, AAAA: the instances in the proxy's own zone; if there are none, those in other zones
//!                         SRV: all instances, those in the own zone with priority 0, the others with 1
//! PROC.APP.ZONE.DOMAIN    A, AAAA, SRV: the instances in that zone
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

/// The time to live of an answer, in seconds. Resolvers learn within a second that an instance has stopped.
pub const TTL: u32 = 1;

/// The most instances in one answer. The next answer names others.
pub const MOST: usize = 64;

/// The names that this proxy answers for.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The domain below which services have their names.
    domain: Name,
    /// The proxy's own zone.
    own: ZoneName,
}

impl Zone {
    /// Creates the names below a domain, as seen from the zone `own`.
    pub fn new(domain: &HostName, own: ZoneName) -> Self {
        let mut domain = Name::from_ascii(domain.as_str()).expect("a host name is a name");
        domain.set_fqdn(true);
        Zone { domain, own }
    }
}

/// An answer, by its sections.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The response code.
    pub code: ResponseCode,
    /// The records that were asked for.
    pub answers: Vec<Record>,
    /// The addresses of the names in `answers`, for SRV.
    pub additionals: Vec<Record>,
    /// The SOA record with the time for which an empty answer may be cached; only with an empty answer.
    pub authority: Option<Record>,
}

/// The meaning of a name.
enum Meaning<'a> {
    /// The name of a service, or of one instance of it.
    Instances(Vec<(InstanceId, &'a ServiceId, &'a Place)>),
    /// The domain itself.
    Apex,
    /// No record has this name, but names below it exist.
    Between,
    Nothing,
}

/// Returns the answer to a question about a name. `turn` rotates the instances: the caller increments it with each
/// question.
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
            // The sort is stable, so the rotation stays within each group.
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

/// Adds the records of a kind to an answer. `instances` come in the order of the answer, near ones first.
fn records(
    answer: &mut Answer,
    zone: &Zone,
    name: &Name,
    kind: RecordType,
    instances: &[(InstanceId, &ServiceId, &Place)],
) {
    match kind {
        // ANY is answered with both kinds of addresses (RFC 8482: one record set is enough).
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            let near = instances.iter().filter(|(.., place)| is_near(zone, place)).count();
            let named = if near > 0 { &instances[..near] } else { instances };
            // Instances on one host share an address.
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
                // The name is too long only below a domain of more than 160 characters.
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

/// Returns the SOA record, which says how long a missing name may be cached. There are no zone transfers, so its
/// other numbers have no meaning.
fn soa(zone: &Zone) -> Record {
    let hostmaster = zone.domain.prepend_label("hostmaster").unwrap_or_else(|_| zone.domain.clone());
    let soa = SOA::new(zone.domain.clone(), hostmaster, 1, 3600, 600, 86_400, TTL);
    Record::from_rdata(zone.domain.clone(), TTL, RData::SOA(soa))
}
