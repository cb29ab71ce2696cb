//! The wire format of DNS: RFC 1035, with EDNS (RFC 6891).
//!
//! Owns which questions are refused before the lookup, and the size limit of an answer. It never touches a socket.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};

use super::{Zone, answer};
use crate::directory::Directory;

/// The payload of a UDP packet that passes on any network (DNS Flag Day 2020), in bytes.
pub const MOST_UDP: u16 = 1232;

/// The payload of a UDP packet for a client that doesn't announce a larger one, in bytes.
const LEAST_UDP: u16 = 512;

/// The transport of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP: an answer that is too long is marked truncated, and the client asks again over TCP.
    Udp,
    /// TCP.
    Tcp,
}

/// Returns the answer to a packet and its code; `None` if the packet isn't a question. Without a directory the answer
/// is SERVFAIL.
pub fn respond(
    directory: Option<&Directory>,
    zone: &Zone,
    packet: &[u8],
    transport: Transport,
    turn: usize,
) -> Option<(ResponseCode, Vec<u8>)> {
    let question = match Message::from_vec(packet) {
        Ok(question) => question,
        Err(_) => return unreadable(packet),
    };
    if question.message_type() != MessageType::Query {
        return None;
    }
    let mut response = Message::new();
    response
        .set_id(question.id())
        .set_message_type(MessageType::Response)
        .set_op_code(question.op_code())
        .set_recursion_desired(question.recursion_desired());
    let limit = match (transport, question.extensions()) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => LEAST_UDP,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(LEAST_UDP, MOST_UDP),
    };
    if question.extensions().is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MOST_UDP).set_version(0);
        response.set_edns(edns);
    }
    fill(&mut response, directory, zone, &question, turn);
    let code = response.response_code();
    Some((code, bytes(response, usize::from(limit))?))
}

fn fill(response: &mut Message, directory: Option<&Directory>, zone: &Zone, question: &Message, turn: usize) {
    let refuse = |response: &mut Message, code| {
        response.set_response_code(code);
    };
    if question.op_code() != OpCode::Query {
        return refuse(response, ResponseCode::NotImp);
    }
    let [query] = question.queries() else { return refuse(response, ResponseCode::FormErr) };
    response.add_query(query.clone());
    if question.extensions().as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(response, ResponseCode::BADVERS);
    }
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || transfer {
        return refuse(response, ResponseCode::Refused);
    }
    let Some(directory) = directory else { return refuse(response, ResponseCode::ServFail) };
    let answer = answer(directory, zone, query.name(), query.query_type(), turn);
    response
        .set_response_code(answer.code)
        .set_authoritative(answer.code != ResponseCode::Refused)
        .add_answers(answer.answers)
        .add_additionals(answer.additionals)
        .add_name_servers(answer.authority);
}

/// Returns the answer to a packet that can't be parsed: FORMERR if the packet was a question, else none.
fn unreadable(packet: &[u8]) -> Option<(ResponseCode, Vec<u8>)> {
    let [high, low, flags, ..] = packet else { return None };
    // The highest bit marks a response.
    if packet.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let response = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Some((ResponseCode::FormErr, response.to_vec().ok()?))
}

/// Returns the response's bytes within a limit: first without the additional addresses, which can be asked for by
/// name, then truncated and marked so.
fn bytes(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = response.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    response.take_additionals();
    let short = response.to_vec().ok()?;
    if short.len() <= limit {
        return Some(short);
    }
    response.truncate().to_vec().ok()
}
