//! What a question about a name is answered, and in which bytes.

use std::collections::BTreeSet;

use bazooka_proxy::{
    directory::{Daemon, Directory, Place, Services},
    dns::{
        MOST, Zone, answer,
        wire::{MOST_UDP, Transport, respond},
    },
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use proptest::prelude::*;
use visor::{identity::Kind, names::InstanceId};

use crate::image::service;

fn place(address: &str, zone: &str, routed: bool) -> Place {
    Place {
        address: address.parse().expect("an address"),
        host: "host1".parse().expect("valid"),
        zone: (!zone.is_empty()).then(|| zone.parse().expect("valid")),
        release: "v1".parse().expect("valid"),
        rev: "0".repeat(40).parse().expect("valid"),
        routed,
    }
}

fn directory(instances: &[(u64, &str, Place)]) -> Directory {
    let mut services = Services::new();
    for name in ["v2/web", "v2/job", "shop/web"] {
        services.insert(service(name), Default::default());
    }
    for (id, name, place) in instances {
        services.entry(service(name)).or_default().insert(InstanceId(*id), place.clone());
    }
    let daemon = Daemon {
        kind: Kind::Pm,
        name: "host9".into(),
        url: "http://10.0.0.9:1".into(),
        zone: Some("east".parse().expect("valid")),
    };
    Directory::of(services.into(), BTreeSet::from([daemon]))
}

fn cluster() -> Directory {
    directory(&[
        (1, "v2/web", place("10.0.0.1:21000", "north", true)),
        (2, "v2/web", place("10.0.0.2:21001", "south", true)),
        (3, "v2/web", place("10.0.0.3:21002", "north", false)),
        (4, "v2/web", place("[fd00::4]:21003", "south", true)),
        (5, "v2/job", place("10.0.0.5:21004", "south", true)),
        // Beside the first one, on the same host.
        (7, "v2/web", place("10.0.0.1:21006", "north", true)),
        (6, "v2/job", place("10.0.0.6:21005", "", true)),
    ])
}

fn zone() -> Zone {
    Zone::new(&"cluster.example.org".parse().expect("valid"), "north".parse().expect("valid"))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn told(record: &Record) -> String {
    assert_eq!(record.ttl(), 1, "{record}");
    match record.data() {
        RData::A(a) => a.to_string(),
        RData::AAAA(aaaa) => aaaa.to_string(),
        RData::SRV(srv) => format!("{} {} {}", srv.priority(), srv.port(), srv.target()),
        RData::SOA(_) => "soa".to_owned(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_name_is_answered_with_what_is_routed_and_the_own_zone_first() {
    use ResponseCode::{NXDomain, NoError, Refused};
    let target = |id: &str, of: &str| format!("{id}.{of}.v2.cluster.example.org.");
    let (one, two, four) = (target("1", "web"), target("2", "web"), target("4", "web"));
    let (five, six, seven) = (target("5", "job"), target("6", "job"), target("7", "web"));
    let south = format!("1 21001 {two}, 1 21003 {four}");
    let jobs = format!("1 21004 {five}, 1 21005 {six}");
    let all = format!("0 21000 {one}, 0 21006 {seven}, {south}");
    let a = RecordType::A;
    let table: &[(&str, RecordType, ResponseCode, &str)] = &[
        ("web.v2.cluster.example.org.", a, NoError, "10.0.0.1"),
        ("WEB.v2.Cluster.Example.ORG.", a, NoError, "10.0.0.1"),
        ("web.v2.cluster.example.org.", RecordType::AAAA, NoError, ""),
        ("web.v2.cluster.example.org.", RecordType::ANY, NoError, "10.0.0.1"),
        ("web.v2.cluster.example.org.", RecordType::SRV, NoError, &all),
        ("web.v2.cluster.example.org.", RecordType::TXT, NoError, ""),
        ("web.v2.north.cluster.example.org.", a, NoError, "10.0.0.1"),
        ("web.v2.south.cluster.example.org.", a, NoError, "10.0.0.2"),
        ("web.v2.south.cluster.example.org.", RecordType::AAAA, NoError, "fd00::4"),
        ("web.v2.south.cluster.example.org.", RecordType::SRV, NoError, &south),
        // There is the zone, and nothing of the service in it.
        ("web.v2.east.cluster.example.org.", a, NoError, ""),
        ("web.v2.west.cluster.example.org.", a, NXDomain, ""),
        // The own zone has none of it; one stands where nobody knows.
        ("job.v2.cluster.example.org.", a, NoError, "10.0.0.5, 10.0.0.6"),
        ("job.v2.cluster.example.org.", RecordType::SRV, NoError, &jobs),
        ("web.shop.cluster.example.org.", a, NoError, ""),
        ("job.shop.cluster.example.org.", a, NXDomain, ""),
        ("web.v3.cluster.example.org.", a, NXDomain, ""),
        ("1.web.v2.cluster.example.org.", a, NoError, "10.0.0.1"),
        ("4.web.v2.cluster.example.org.", a, NoError, ""),
        ("4.web.v2.cluster.example.org.", RecordType::AAAA, NoError, "fd00::4"),
        // It drains, it is another service's, it never was, it isn't spelled so.
        ("3.web.v2.cluster.example.org.", a, NXDomain, ""),
        ("5.web.v2.cluster.example.org.", a, NXDomain, ""),
        ("8.web.v2.cluster.example.org.", a, NXDomain, ""),
        ("01.web.v2.cluster.example.org.", a, NXDomain, ""),
        // Names that have others below them.
        ("v2.cluster.example.org.", a, NoError, ""),
        ("v2.north.cluster.example.org.", a, NoError, ""),
        ("north.cluster.example.org.", a, NoError, ""),
        ("west.cluster.example.org.", a, NXDomain, ""),
        ("v2.west.cluster.example.org.", a, NXDomain, ""),
        ("cluster.example.org.", a, NoError, ""),
        ("cluster.example.org.", RecordType::SOA, NoError, "soa"),
        ("a.web.v2.north.cluster.example.org.", a, NXDomain, ""),
        ("_web._tcp.cluster.example.org.", RecordType::SRV, NXDomain, ""),
        ("example.org.", a, Refused, ""),
        ("web.v2.cluster.example.com.", a, Refused, ""),
        (".", a, Refused, ""),
    ];
    for (asked, kind, code, wanted) in table {
        let answer = answer(&cluster(), &zone(), &name(asked), *kind, 0);
        let told: Vec<String> = answer.answers.iter().map(told).collect();
        assert_eq!((answer.code, told.join(", ").as_str()), (*code, *wanted), "{asked} {kind}");
        // How long nothing may be believed is said where there is nothing, and by who is asked rightly.
        let soa = wanted.is_empty() && *code != Refused;
        assert_eq!(answer.authority.is_some(), soa, "{asked} {kind}");
    }
}

#[test]
fn an_srv_answer_has_the_addresses_of_what_it_names() {
    let answer = answer(&cluster(), &zone(), &name("web.v2.cluster.example.org."), RecordType::SRV, 0);
    let addresses: Vec<(String, String)> =
        answer.additionals.iter().map(|record| (record.name().to_string(), told(record))).collect();
    let wanted = [("1", "10.0.0.1"), ("7", "10.0.0.1"), ("2", "10.0.0.2"), ("4", "fd00::4")];
    let wanted = wanted.map(|(id, at)| (format!("{id}.web.v2.cluster.example.org."), at.to_owned()));
    assert_eq!(addresses, wanted);
}

fn many(count: u64) -> Directory {
    let at = |n: u64| place(&format!("10.0.{}.{}:21000", n / 250, n % 250 + 1), "north", true);
    directory(&(0..count).map(|n| (n, "v2/web", at(n))).collect::<Vec<_>>())
}

#[test]
fn answers_are_bounded_and_take_turns() {
    let all = many(200);
    let ask = |kind, turn| answer(&all, &zone(), &name("web.v2.cluster.example.org."), kind, turn).answers;
    let mut named = BTreeSet::new();
    for turn in 0..200 {
        let answer = ask(RecordType::A, turn);
        assert_eq!(answer.len(), MOST);
        named.insert(told(&answer[0]));
        assert_eq!(ask(RecordType::SRV, turn).len(), MOST);
    }
    assert_eq!(named.len(), 200, "each comes first once");
}

/// A question's bytes.
fn question(asked: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new();
    let mut query = Query::query(name(asked), kind);
    query.set_query_class(DNSClass::IN);
    message.set_id(7).set_message_type(MessageType::Query).set_recursion_desired(true).add_query(query);
    if let Some(most) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(most).set_version(0);
        message.set_edns(edns);
    }
    message
}

fn ask(directory: Option<&Directory>, message: &Message, transport: Transport) -> (Message, usize) {
    let packet = message.to_vec().expect("a packet");
    let (_, bytes) = respond(directory, &zone(), &packet, transport, 0).expect("an answer");
    (Message::from_vec(&bytes).expect("it can be read"), bytes.len())
}

#[test]
fn an_answer_is_never_longer_than_who_asks_can_take() {
    let name = "web.v2.cluster.example.org.";
    let table = [
        // What is asked, over what, of how many: the most it may take, whether it is cut, how many it names.
        (RecordType::A, None, Transport::Udp, 20, 512, false, 20),
        (RecordType::A, None, Transport::Udp, 60, 512, true, 0),
        (RecordType::A, Some(1232), Transport::Udp, 60, 1232, false, 60),
        (RecordType::A, Some(100), Transport::Udp, 60, 512, true, 0),
        (RecordType::A, Some(65_535), Transport::Udp, 64, 1232, false, 64),
        // Without the addresses that can be asked for.
        (RecordType::SRV, Some(1232), Transport::Udp, 15, 1232, false, 15),
        (RecordType::SRV, Some(65_535), Transport::Udp, 64, 1232, true, 0),
        (RecordType::SRV, None, Transport::Tcp, 64, 65_535, false, 64),
    ];
    for (kind, edns, transport, count, most, cut, named) in table {
        let (answer, length) = ask(Some(&many(count)), &question(name, kind, edns), transport);
        let what = format!("{kind} of {count}, {edns:?}, {transport:?}: {length} bytes");
        assert!(length <= most, "{what}");
        assert_eq!((answer.truncated(), answer.answers().len()), (cut, named), "{what}");
        let said = answer.extensions().as_ref().map(Edns::max_payload);
        assert_eq!(said, edns.map(|_| MOST_UDP), "{what}");
        assert!(answer.authoritative() && answer.recursion_desired() && !answer.recursion_available());
        assert_eq!((answer.id(), answer.queries().len()), (7, 1));
    }
}

#[test]
fn what_is_no_question_for_us_is_refused_in_dnss_own_words() {
    let there = cluster();
    let code = |message: &Message| ask(Some(&there), message, Transport::Udp).0.response_code();
    let plain = question("web.v2.cluster.example.org.", RecordType::A, Some(1232));
    assert_eq!(code(&plain), ResponseCode::NoError);
    let unready = ask(None, &plain, Transport::Udp).0;
    assert_eq!((unready.response_code(), unready.authoritative()), (ResponseCode::ServFail, false));
    let mut update = plain.clone();
    update.set_op_code(OpCode::Update);
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut two = plain.clone();
    two.add_query(Query::query(name("a."), RecordType::A));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut newer = plain.clone();
    newer.extensions_mut().as_mut().expect("it has them").set_version(1);
    // BADVERS: the same number as BADSIG.
    assert_eq!(u16::from(code(&newer)), 16);
    assert_eq!(code(&question("cluster.example.org.", RecordType::AXFR, None)), ResponseCode::Refused);
    let mut chaos = Message::new();
    let mut query = Query::query(name("version.bind."), RecordType::TXT);
    query.set_query_class(DNSClass::CH);
    chaos.add_query(query);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    // An answer is never answered: two servers would talk for ever.
    let mut answer = plain.clone();
    answer.set_message_type(MessageType::Response);
    let packet = answer.to_vec().expect("a packet");
    assert!(respond(Some(&there), &zone(), &packet, Transport::Udp, 0).is_none());
    // Cut in the middle, it is known for a question still.
    let packet = plain.to_vec().expect("a packet");
    let (code, bytes) = respond(Some(&there), &zone(), &packet[..20], Transport::Udp, 0).expect("an answer");
    assert_eq!((code, &bytes[..2]), (ResponseCode::FormErr, &[0, 7][..]));
    assert!(respond(Some(&there), &zone(), &packet[..11], Transport::Udp, 0).is_none());
}

proptest! {
    #[test]
    fn no_packet_brings_it_down_or_makes_it_say_too_much(
        packet in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            // A question with some bytes changed.
            (prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), 0usize..80).prop_map(|(changes, cut)| {
                let mut packet = question("web.v2.cluster.example.org.", RecordType::SRV, Some(4096)).to_vec().expect("a packet");
                for (at, byte) in changes {
                    let at = at.index(packet.len());
                    packet[at] = byte;
                }
                packet.truncate(packet.len().saturating_sub(cut / 4));
                packet
            }),
        ],
        turn in any::<usize>(),
    ) {
        if let Some((_, bytes)) = respond(Some(&cluster()), &zone(), &packet, Transport::Udp, turn) {
            prop_assert!(bytes.len() <= usize::from(MOST_UDP));
            prop_assert!(Message::from_vec(&bytes).is_ok());
        }
    }
}
