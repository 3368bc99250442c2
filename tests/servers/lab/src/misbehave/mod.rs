// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Replies that no honest server sends, or not at the right time.

mod fields;
mod garble;
mod raw;

use crate::oracle::{self, Context};
use crate::random::Random;
use fields::{edit_header, field};
use fuse_iomap::wire::{IomapBeginIn, IomapBeginOut, OutHeader, opcode};
use fuse_iomap::{Connection, ReplyAction, ReplyHook, Request};
use garble::garble_once;
pub use raw::{Notice, RawIo};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = size_of::<OutHeader>();

/// What is done to which reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the opcode, such as `IOMAP_BEGIN`.
    pub op: String,
    /// Only for this inode.
    #[serde(default)]
    pub path: Option<String>,
    /// Only BEGINs with all of these operation flags.
    #[serde(default)]
    pub with: u32,
    /// Only BEGINs with none of these operation flags.
    #[serde(default)]
    pub without: u32,
    /// Only the nth time (from 1); otherwise every time.
    #[serde(default)]
    pub nth: Option<u64>,
    /// What is done.
    pub action: Action,
    /// Errno that is sent afterwards if the kernel refuses the reply, or if the reply is for
    /// another request, so that the caller does not wait for ever.
    #[serde(default)]
    pub then_errno: Option<i32>,
}

/// What is done to a reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Send it later.
    Delay {
        /// How much later.
        ms: u64,
        /// Answer `EINTR` at once when the caller gets a signal.
        #[serde(default)]
        interruptible: bool,
    },
    /// Never send it.
    Drop {
        /// Answer `EINTR` when the caller gets a signal.
        #[serde(default)]
        interruptible: bool,
    },
    /// The server dies instead.
    Die,
    /// Send an error instead; the number as it goes into the header, so negative for a proper one.
    Error {
        /// That number.
        value: i32,
    },
    /// Change fields of a reply to BEGIN or IOEND.
    Fields {
        /// Pairs of `read.` or `write.` and `offset`, `length`, `addr`, `type`, `flags` or `dev`,
        /// or of `ioend.newsize`, or of `config.` and a number's name, and the value.
        set: Vec<(String, u64)>,
    },
    /// Put these mappings behind a reply to BEGIN, instead of what follows it.
    More {
        /// The mappings.
        records: Vec<RawIo>,
    },
    /// Overwrite bytes of the payload, as far as it goes.
    Patch {
        /// From here on.
        at: usize,
        /// With these.
        bytes: Vec<u8>,
    },
    /// Make the payload this long, cutting it or adding zeros; the header says so.
    Resize {
        /// Length in bytes.
        payload: usize,
    },
    /// Cut the whole message, header included, to this many bytes without telling the header.
    Cut {
        /// Length in bytes.
        message: usize,
    },
    /// Make the header say another length.
    HeaderLen {
        /// That length.
        value: u32,
    },
    /// Answer another request than the one that was asked.
    Unique {
        /// Flips these bits of the request's number.
        xor: u64,
    },
}

/// Misbehaviour by seed: garbled replies to BEGIN.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomSpec {
    /// Where the random numbers start.
    pub seed: u64,
    /// Out of 256 replies this many are garbled.
    pub of_256: u16,
    /// Only send what the protocol forbids; otherwise a garbled reply may happen to be a
    /// well-formed mapping of the wrong blocks, which is a server's good right.
    #[serde(default = "yes")]
    pub forbidden_only: bool,
    /// Only for this inode.
    #[serde(default)]
    pub path: Option<String>,
}

const fn yes() -> bool {
    true
}

/// A garbled reply, for the record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Garbled {
    /// Position that was asked about.
    pub pos: u64,
    /// What was done.
    pub what: String,
    /// Rules of the protocol that the reply breaks; none if the message itself is broken.
    pub rules: Vec<String>,
}

struct ArmedRule {
    opcode: u32,
    nodeid: Option<u64>,
    rule: Rule,
    seen: u64,
    fired: u64,
}

impl ArmedRule {
    /// Whether these are arguments of a request that the rule is about.
    fn wants(&self, args: &[u8]) -> bool {
        let (with, without) = (self.rule.with, self.rule.without);
        if with | without == 0 {
            return true;
        }
        let begin = IomapBeginIn::read_from_prefix(args);
        begin.is_ok_and(|(b, _)| b.opflags & with == with && b.opflags & without == 0)
    }
}

struct ArmedRandom {
    random: Random,
    nodeid: Option<u64>,
    spec: RandomSpec,
    log: Vec<Garbled>,
}

#[derive(Default)]
struct State {
    rules: Vec<ArmedRule>,
    random: Option<ArmedRandom>,
    /// Withheld replies whose callers can be interrupted.
    interruptible: HashSet<u64>,
    /// Callers that were interrupted before their reply was withheld.
    interrupted: HashSet<u64>,
    /// What to answer if the kernel refuses a reply.
    then_errno: HashMap<u64, i32>,
}

/// Judges replies to BEGIN for one inode.
pub type Judge = Box<dyn Fn(u64, &IomapBeginIn) -> Option<Context> + Send + Sync>;

/// The hook that does all this.
pub struct Misbehave {
    state: Mutex<State>,
    connection: OnceLock<Arc<Connection>>,
    judge: Judge,
}

impl Misbehave {
    /// `judge` gives the context for a node id and a request.
    pub fn new(judge: Judge) -> Self {
        Self {
            state: Mutex::default(),
            connection: OnceLock::new(),
            judge,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is good at any time, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells where replies go that are sent out of order.
    pub fn connect(&self, connection: Arc<Connection>) {
        // There is only one connection in the life of a server.
        let _ = self.connection.set(connection);
    }

    /// Replaces all rules. `resolve` turns paths into node ids.
    pub fn set_rules(
        &self,
        rules: Vec<Rule>,
        resolve: impl Fn(&str) -> Result<u64, String>,
    ) -> Result<(), String> {
        let mut armed = Vec::new();
        for rule in rules {
            let opcode = opcode::from_name(&rule.op)
                .ok_or_else(|| format!("rule: no opcode is called {}", rule.op))?;
            if let Action::Fields { set } = &rule.action {
                set.iter().try_for_each(|(f, _)| field(f).map(|_| ()))?;
            }
            armed.push(ArmedRule {
                opcode,
                nodeid: rule.path.as_deref().map(&resolve).transpose()?,
                rule,
                seen: 0,
                fired: 0,
            });
        }
        self.state().rules = armed;
        Ok(())
    }

    /// Starts or stops random misbehaviour.
    pub fn set_random(
        &self,
        spec: Option<RandomSpec>,
        resolve: impl Fn(&str) -> Result<u64, String>,
    ) -> Result<(), String> {
        let armed = match spec {
            Some(spec) => Some(ArmedRandom {
                random: Random::new(spec.seed),
                nodeid: spec.path.as_deref().map(&resolve).transpose()?,
                spec,
                log: Vec::new(),
            }),
            None => None,
        };
        self.state().random = armed;
        Ok(())
    }

    /// How often each rule did something.
    pub fn fired(&self) -> Vec<u64> {
        self.state().rules.iter().map(|r| r.fired).collect()
    }

    /// What the random misbehaviour did so far.
    pub fn garbled(&self) -> Vec<Garbled> {
        self.state()
            .random
            .as_ref()
            .map_or_else(Vec::new, |r| r.log.clone())
    }

    fn send_error(&self, unique: u64, errno: i32) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        let header = OutHeader {
            len: HEADER as u32,
            error: -errno,
            unique,
        };
        // The caller may be gone by now, which is as good.
        let _ = connection.send_raw(header.as_bytes());
    }

    fn withhold(&self, state: &mut State, unique: u64, interruptible: bool) {
        if interruptible {
            state.interruptible.insert(unique);
            if state.interrupted.remove(&unique) {
                self.send_error(unique, EINTR);
            }
        }
    }

    fn apply(
        &self,
        state: &mut State,
        action: &Action,
        request: &Request,
        reply: &mut Vec<u8>,
    ) -> ReplyAction {
        match action {
            Action::Delay { ms, interruptible } => {
                self.withhold(state, request.unique(), *interruptible);
                return ReplyAction::Delay(Duration::from_millis(*ms));
            }
            Action::Drop { interruptible } => {
                self.withhold(state, request.unique(), *interruptible);
                return ReplyAction::Drop;
            }
            Action::Die => std::process::exit(9),
            Action::Error { value } => {
                reply.truncate(HEADER);
                edit_header(reply, |h| {
                    h.len = HEADER as u32;
                    h.error = *value;
                });
            }
            Action::Fields { set } => {
                for (name, value) in set {
                    // Names were checked when the rule was set.
                    if let Ok(field) = field(name) {
                        field.set(reply, *value);
                    }
                }
            }
            Action::More { records } => {
                reply.truncate(HEADER + size_of::<IomapBeginOut>());
                for record in records {
                    reply.extend_from_slice(record.to_wire().as_bytes());
                }
                let len = reply.len() as u32;
                edit_header(reply, |h| h.len = len);
            }
            Action::Patch { at, bytes } => {
                let start = HEADER.saturating_add(*at);
                for (to, from) in reply.iter_mut().skip(start).zip(bytes) {
                    *to = *from;
                }
            }
            Action::Resize { payload } => {
                reply.resize(HEADER.saturating_add(*payload), 0);
                let len = reply.len() as u32;
                edit_header(reply, |h| h.len = len);
            }
            Action::Cut { message } => reply.truncate(*message),
            Action::HeaderLen { value } => edit_header(reply, |h| h.len = *value),
            Action::Unique { xor } => edit_header(reply, |h| h.unique ^= xor),
        }
        ReplyAction::Send
    }

    /// Sends a reply. If it is for another request, then the kernel refuses nothing and the caller
    /// would wait for ever, so that one gets its error here.
    fn answer_the_right_one(
        &self,
        mut state: MutexGuard<'_, State>,
        request: &Request,
        reply: &[u8],
    ) -> ReplyAction {
        let header = OutHeader::read_from_prefix(reply);
        if header.is_ok_and(|(h, _)| h.unique != request.unique()) {
            let errno = state.then_errno.remove(&request.unique());
            drop(state);
            if let Some(connection) = self.connection.get() {
                // That it is not taken is what is expected.
                let _ = connection.send_raw(reply);
            }
            self.send_error(request.unique(), errno.unwrap_or(EIO));
            return ReplyAction::Drop;
        }
        ReplyAction::Send
    }

    /// Garbles a reply to BEGIN; returns whether it did.
    fn garble(
        &self,
        armed: &mut ArmedRandom,
        request: &Request,
        args: &[u8],
        reply: &mut Vec<u8>,
    ) -> bool {
        let Ok((begin, _)) = IomapBeginIn::read_from_prefix(args) else {
            return false;
        };
        if reply.len() != HEADER + size_of::<IomapBeginOut>() {
            return false;
        }
        let Some(context) = (self.judge)(request.nodeid(), &begin) else {
            return false;
        };
        let original = reply.clone();
        for _ in 0..32 {
            reply.clone_from(&original);
            let what = garble_once(&mut armed.random, &context, reply);
            let rules = broken_by(reply, &context);
            let message_broken =
                reply.len() != original.len() || reply[..HEADER] != original[..HEADER];
            if message_broken || !armed.spec.forbidden_only || !rules.is_empty() {
                armed.log.push(Garbled {
                    pos: begin.pos,
                    what,
                    rules: if message_broken { Vec::new() } else { rules },
                });
                return true;
            }
        }
        reply.clone_from(&original);
        false
    }
}

const EINTR: i32 = 4;
const EIO: i32 = 5;

impl ReplyHook for Misbehave {
    fn reply(&self, request: &Request, args: &[u8], reply: &mut Vec<u8>) -> ReplyAction {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut chosen = None;
        for armed in &mut state.rules {
            let node_matches = armed.nodeid.is_none_or(|n| n == request.nodeid());
            if armed.opcode != request.opcode() || !node_matches || !armed.wants(args) {
                continue;
            }
            armed.seen += 1;
            if chosen.is_none() && armed.rule.nth.is_none_or(|n| n == armed.seen) {
                armed.fired += 1;
                chosen = Some((armed.rule.action.clone(), armed.rule.then_errno));
            }
        }
        if let Some((action, then_errno)) = chosen {
            if let Some(errno) = then_errno {
                state.then_errno.insert(request.unique(), errno);
            }
            let action = self.apply(state, &action, request, reply);
            if action == ReplyAction::Send && then_errno.is_some() {
                return self.answer_the_right_one(guard, request, reply);
            }
            return action;
        }
        if request.opcode() != opcode::IOMAP_BEGIN {
            return ReplyAction::Send;
        }
        let mut garbled = false;
        if let Some(armed) = &mut state.random {
            let here = armed.nodeid.is_none_or(|n| n == request.nodeid());
            if here && armed.random.chance(armed.spec.of_256) {
                garbled = self.garble(armed, request, args, reply);
            }
        }
        if garbled {
            state.then_errno.insert(request.unique(), EIO);
            return self.answer_the_right_one(guard, request, reply);
        }
        ReplyAction::Send
    }

    fn interrupted(&self, unique: u64) {
        let mut state = self.state();
        if state.interruptible.remove(&unique) {
            drop(state);
            self.send_error(unique, EINTR);
        } else {
            state.interrupted.insert(unique);
        }
    }

    fn refused(&self, request: &Request, _error: &io::Error) {
        let errno = self.state().then_errno.remove(&request.unique());
        if let Some(errno) = errno {
            self.send_error(request.unique(), errno);
        }
    }
}

fn broken_by(reply: &[u8], context: &Context) -> Vec<String> {
    match IomapBeginOut::read_from_prefix(reply.get(HEADER..).unwrap_or(&[])) {
        Ok((begin, _)) => oracle::broken_rules(&begin, context)
            .into_iter()
            .map(str::to_owned)
            .collect(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_iomap::{BackingId, BeginReply, Mapping};

    fn reply() -> Vec<u8> {
        let begin = BeginReply::read(Mapping::mapped(BackingId::from_raw(1), 0, 65536, 4096));
        let header = OutHeader {
            len: 80,
            error: 0,
            unique: 42,
        };
        [header.as_bytes(), begin.to_wire().as_bytes()].concat()
    }

    fn context() -> Context {
        Context {
            pos: 0,
            opflags: 0,
            blksize: 4096,
            maxbytes: i64::MAX as u64,
            devices: HashMap::from([(1, (1 << 24, 512))]),
        }
    }

    #[test]
    fn fields_are_where_their_names_say() {
        let mut r = reply();
        field("read.length")
            .unwrap()
            .set(&mut r, 0x1122_3344_5566_7788);
        field("write.dev").unwrap().set(&mut r, 7);
        field("read.type").unwrap().set(&mut r, 0xfffe);
        let (begin, _) = IomapBeginOut::read_from_prefix(&r[HEADER..]).unwrap();
        assert_eq!(begin.read.length, 0x1122_3344_5566_7788);
        assert_eq!(begin.write.dev, 7);
        assert_eq!(begin.read.kind, 0xfffe);
        assert_eq!(field("read.length").unwrap().get(&r), 0x1122_3344_5566_7788);
        assert!(field("read.colour").is_err());
        assert!(field("length").is_err());
    }

    #[test]
    fn garbling_repeats_with_its_seed_and_never_panics() {
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..2000)
                .map(|_| {
                    let mut r = reply();
                    garble_once(&mut random, &context(), &mut r);
                    r
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn rules_with_mistakes_are_refused() {
        let m = Misbehave::new(Box::new(|_, _| None));
        let rule = |op: &str, action| Rule {
            op: op.into(),
            path: None,
            with: 0,
            without: 0,
            nth: None,
            action,
            then_errno: None,
        };
        let set = |r| m.set_rules(vec![r], |_| Err("no such file".into()));
        assert!(set(rule("IOMAP_BEGIN", Action::Die)).is_ok());
        assert!(set(rule("IOMAP_BEGUN", Action::Die)).is_err());
        let fields = Action::Fields {
            set: vec![("read.x".into(), 0)],
        };
        assert!(set(rule("IOMAP_BEGIN", fields)).is_err());
    }
}
