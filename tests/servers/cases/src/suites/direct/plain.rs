// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One thread, one request at a time, for every way of mapping and every block size.

use super::super::bench::Bench;
use crate::tap::Tap;

/// A name, and operations as in the lines of the generated cases.
const CASES: [(&str, &str); 27] = [
    ("a new file", "dwrite 0 8192; dread 0 8192"),
    (
        "appends",
        "dwrite 0 4096; dwrite 4096 4096; dwrite 8192 512; dwrite 8704 512; sync; dwrite 9216 65536",
    ),
    (
        "behind the end",
        "dwrite 0 4096; dwrite 65536 4096; dread 0 69632",
    ),
    (
        "far behind the end of a small file",
        "write 0 100; dwrite 100352 512",
    ),
    (
        "over the end",
        "write 0 1000; dwrite 512 4096; dread 0 4608",
    ),
    (
        "into a hole",
        "truncate 100000; dwrite 8192 4096; dread 0 99840",
    ),
    (
        "into a part of a block of a hole",
        "truncate 200000; dwrite 66048 512; dwrite 67072 512",
    ),
    (
        "over a hole and data",
        "write 0 20000; truncate 40000; cold; dwrite 16384 16384",
    ),
    (
        "into unwritten blocks",
        "alloc 0 65536; dwrite 4096 8192; dwrite 32768 32768; dread 0 65536",
    ),
    (
        "into parts of unwritten blocks",
        "alloc 0 131072; dwrite 512 512; dwrite 66048 1024; dwrite 1024 512; cold; dwrite 130560 512",
    ),
    (
        "into unwritten blocks behind the end",
        "write 0 512; alloc-keep 0 131072; dwrite 512 65536",
    ),
    (
        "overwriting",
        "write 0 131072; cold; dwrite 65536 65536; dwrite 0 4096",
    ),
    (
        "overwriting parts of blocks",
        "write 0 40000; cold; dwrite 512 512; dwrite 5120 6656",
    ),
    (
        "into shared blocks",
        "write 0 131072; share; dwrite 0 65536; dread 0 131072; dwrite 65536 4096",
    ),
    (
        "into parts of shared blocks",
        "write 0 131072; share; dwrite 512 512; dwrite 66048 1536; share; dwrite 0 131072",
    ),
    (
        "over what is dirty",
        "write 0 40000; dwrite 4096 4096; read 0 40000",
    ),
    (
        "over parts of what is dirty",
        "write 0 40000; dwrite 4608 512; read 0 40000; write 4600 20; dread 0 39936",
    ),
    (
        "over what is cached",
        "write 0 40000; sync; read 0 40000; dwrite 512 8192; read 0 40000",
    ),
    (
        "reading what is dirty",
        "write 0 40000; dread 512 1024; write 600 600; dread 0 40448",
    ),
    (
        "reading the end",
        "write 0 1000; dread 0 1024; truncate 513; dread 512 512",
    ),
    (
        "beside stores",
        "write 0 40000; store 5000 100; dwrite 4096 512; store 4000 200; dread 0 39936; dwrite 0 40448",
    ),
    (
        "behind stores behind the end",
        "write 0 5000; tail; dwrite 5120 512; truncate 20000",
    ),
    (
        "far behind stores behind the end",
        "write 0 1; tail; dwrite 69632 1536",
    ),
    (
        "and truncation",
        "dwrite 0 65536; truncate 5000; dwrite 20480 512; truncate 512; dwrite 512 512; truncate 30000",
    ),
    (
        "and holes",
        "dwrite 0 65536; punch 5000 20000; dread 0 65536; dwrite 8192 8192; zero 10000 100",
    ),
    (
        "and blocks that move",
        "dwrite 0 262144; collapse 65536 65536; dread 0 196608; dwrite 65536 512; insert 0 65536; dread 0 262144",
    ),
    (
        "and copies",
        "dwrite 0 131072; copy 0 65536 131072; dwrite 131072 4096; dwrite 512 512; dread 0 196608",
    ),
];

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (what, ops) in CASES {
        tap.case(what, || bench.everywhere(ops));
    }
}
