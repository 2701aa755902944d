// SPDX-License-Identifier: Apache-2.0
//! What is inside of `IPSET_ATTR_DATA` when a set is created or its header listed.

use netlink_pipeline::attribute::NetOrder;

netlink_pipeline::attributes! {
    /// A property of a set.
    pub enum SetAttribute {
        /// `IPSET_ATTR_PORT`: first port of a bitmap.
        PortFrom(u16) = 4 IPSET_ATTR_PORT as NetOrder,
        /// `IPSET_ATTR_PORT_TO`: last port of a bitmap.
        PortTo(u16) = 5 IPSET_ATTR_PORT_TO as NetOrder,
        /// `IPSET_ATTR_TIMEOUT`: the set's entries expire, after so many seconds by default.
        Timeout(u32) = 6 IPSET_ATTR_TIMEOUT as NetOrder,
        /// `IPSET_ATTR_CADT_FLAGS`: extensions, `enum ipset_cadt_flags`.
        Flags(u32) = 8 IPSET_ATTR_CADT_FLAGS as NetOrder,
        /// `IPSET_ATTR_INITVAL`: the seed of the hash.
        InitVal(u32) = 17 IPSET_ATTR_INITVAL as NetOrder,
        /// `IPSET_ATTR_HASHSIZE`: hash buckets.
        HashSize(u32) = 18 IPSET_ATTR_HASHSIZE as NetOrder,
        /// `IPSET_ATTR_MAXELEM`: most entries.
        MaxElem(u32) = 19 IPSET_ATTR_MAXELEM as NetOrder,
        /// `IPSET_ATTR_NETMASK`: addresses count as the network of so many bits.
        NetMask(u8) = 20 IPSET_ATTR_NETMASK,
        /// `IPSET_ATTR_BUCKETSIZE`: most entries of one bucket.
        BucketSize(u8) = 21 IPSET_ATTR_BUCKETSIZE,
        /// `IPSET_ATTR_ELEMENTS`: entries (Linux 4.9).
        Elements(u32) = 24 IPSET_ATTR_ELEMENTS as NetOrder,
        /// `IPSET_ATTR_REFERENCES`: rules and sets that use it.
        References(u32) = 25 IPSET_ATTR_REFERENCES as NetOrder,
        /// `IPSET_ATTR_MEMSIZE`: bytes.
        MemSize(u32) = 26 IPSET_ATTR_MEMSIZE as NetOrder,
    }
}
