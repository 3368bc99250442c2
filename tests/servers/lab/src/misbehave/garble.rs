// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Damage at random.

use super::HEADER;
use super::fields::{FIELDS, edit_header, field};
use crate::oracle::Context;
use crate::random::Random;

/// Does one thing to a good reply; says what.
pub(super) fn garble_once(random: &mut Random, context: &Context, reply: &mut Vec<u8>) -> String {
    match random.below(16) {
        0 => {
            let payload = random.below(200) as usize;
            reply.resize(HEADER + payload, random.next() as u8);
            let len = reply.len() as u32;
            edit_header(reply, |h| h.len = len);
            format!("payload of {payload} bytes")
        }
        1 => {
            // One of no bytes is never sent, so that the kernel could not refuse it.
            let message = 1 + random.below(79) as usize;
            reply.truncate(message);
            format!("message cut to {message} bytes")
        }
        2 => {
            let value = random.pick(&[0, 15, 17, 79, 81, u32::MAX]);
            edit_header(reply, |h| h.len = value);
            format!("header length {value}")
        }
        3 => {
            let value = random.pick(&[1, 5, -512, -4096, i32::MIN, i32::MAX, -5, -12, -95]);
            reply.truncate(HEADER);
            edit_header(reply, |h| {
                h.len = HEADER as u32;
                h.error = value;
            });
            format!("error {value}")
        }
        4 => {
            let xor = 1 << (1 + random.below(62));
            edit_header(reply, |h| h.unique ^= xor);
            format!("unique changed by {xor:#x}")
        }
        5 => {
            edit_header(reply, |h| h.error = -5);
            "error with a payload".to_owned()
        }
        6 => {
            let from = HEADER + random.below(64) as usize;
            for byte in &mut reply[from..] {
                *byte = random.next() as u8;
            }
            format!("noise from byte {}", from - HEADER)
        }
        _ => {
            let times = 1 + random.below(3);
            let mut what = Vec::new();
            for _ in 0..times {
                what.push(garble_field(random, context, reply));
            }
            what.join(", ")
        }
    }
}

fn garble_field(random: &mut Random, context: &Context, reply: &mut [u8]) -> String {
    let side = if random.chance(200) { "read" } else { "write" };
    let name = format!("{side}.{}", random.pick(&FIELDS));
    let Ok(field) = field(&name) else {
        return String::new();
    };
    let now = field.get(reply);
    let device_end = context.devices.values().map(|d| d.0).max().unwrap_or(0);
    let value = match random.below(10) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << 63,
        3 => now.wrapping_add(1),
        4 => now.wrapping_sub(1),
        5 => now.wrapping_add(random.pick(&[256, 512, 4096])),
        6 => now.wrapping_sub(random.pick(&[256, 512, 4096])),
        7 => random.next(),
        8 => device_end.wrapping_sub(random.below(2) * 512),
        _ => 1 << random.below(64),
    };
    field.set(reply, value);
    format!("{name} {now:#x} -> {:#x}", field.get(reply))
}
