//! A question's bytes to an answer's bytes: RFC 1035, with EDNS (RFC 6891).
//!
//! Owns what is refused before anything is looked up, and how long an answer may be. It knows no socket.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};

use super::{Zone, answer};
use crate::directory::Directory;

/// What goes into one UDP packet on any network (as the DNS Flag Day of 2020 has it), in bytes.
pub const MOST_UDP: u16 = 1232;

/// What goes into one for who doesn't say that it can take more, in bytes.
const LEAST_UDP: u16 = 512;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In one packet: an answer that is too long says so, and is asked for again by TCP.
    Udp,
    /// On a connection.
    Tcp,
}

/// The answer to a packet; none to what is no question. Without a directory it is that this isn't known yet.
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

/// What can be said to who sent something that can't be read: that, if it was meant as a question.
fn unreadable(packet: &[u8]) -> Option<(ResponseCode, Vec<u8>)> {
    let [high, low, flags, ..] = packet else { return None };
    // The highest bit tells an answer.
    if packet.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let response = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Some((ResponseCode::FormErr, response.to_vec().ok()?))
}

/// The bytes, within a limit: without addresses that can be asked for by name, else cut and said to be.
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
