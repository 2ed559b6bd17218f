//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// The tc program that samples at the egress of a guest's tap or veth, where frames leave the
// switch for the guest. See doc.go for what it does; `go generate` compiles it.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// No helper used here is for GPL programs only, from Linux 5.8 on, which the ring needs anyway.
char license_of_program[] SEC("license") = "Apache-2.0";

// The SHA-256 of this file as it was compiled. No one loads it; a test compares it with the file.
const char source_hash[] SEC("source_sha256") = SOURCE_SHA256;

// The stain, written at load. TOS has no ECN bits; the port is in host order.
volatile const __u8 stain_tos;
volatile const __u16 stain_port;

// What goes up for each stained packet. All numbers are in host order. An IPv4 address is in its
// IPv4-mapped form (RFC 4291, section 2.5.5.2), in which no IPv6 address of a stained packet is.
// No padding: 56 bytes.
struct digest {
	__u64 at; // CLOCK_MONOTONIC, ns
	__u8 src[16];
	__u8 dst[16];
	__u32 ifindex;
	__u32 seq; // of an echo, its identifier and sequence number
	__u32 ack; // of an echo, 0
	__u8 ttl;
	__u8 flags; // byte 13 of the TCP header; of an echo, its type
	__u8 scheme;
	__u8 withheld;
};

// A probe that the guest must not see: its token, and the address that it is for. The address
// keeps the tokens of concurrent runs, which are chosen independently, from being mixed up.
struct probe {
	__u32 token;
	__u8 dst[16];
};

struct counters {
	__u64 received; // went up
	__u64 lost;	// found no room in the ring
	__u64 withheld; // were dropped here, whether they went up or not
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); // replaced at load
} samples SEC(".maps");

// Probe to until when it is withheld, in ns of CLOCK_MONOTONIC.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); // it is empty most of the time
	__uint(max_entries, 1 << 16);	      // replaced at load
	__type(key, struct probe);
	__type(value, __u64);
} withheld SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} stats SEC(".maps");

// The action that leaves a packet to whoever comes next: TCX_NEXT of tcx, TC_ACT_UNSPEC of clsact.
#define NEXT (-1)
// What drops a packet as if it had left: a redirect to no device. TC_ACT_SHOT would make the sender
// fail with ENOBUFS, and a userspace switch lose the tenants' packets that follow in the same
// sendmmsg(2); TC_ACT_STOLEN does neither, but tcx does not know it.
#define CONSUME() bpf_redirect(0, 0)

// The scheme of a packet, by the numbers of package stain.
#define SCHEME_TCP 1
#define SCHEME_ICMP 2

// What match says of a packet.
#define OTHER 0
#define STAINED 1
#define UNREAD 2 // a header is beyond what can be read directly

#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8

// The most that match ever reads: one tag, and all options that IPv4 can have.
#define MAX_HEADERS (14 + 4 + 60 + 20)

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10

// An echo without its data (RFC 792; RFC 4443, section 4), and the types of it. <linux/icmp.h>
// would want the C library.
struct echohdr {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 token; // identifier and sequence number
};
#define ECHO_REPLY 0
#define ECHO_REQUEST 8
#define ECHO_REQUEST_V6 128
#define ECHO_REPLY_V6 129

// segment fills d from the TCP header at tcp, of a segment of size bytes in a packet with this
// type of service. The order of the checks is of the essence: user traffic fails the first.
static __always_inline int segment(struct tcphdr *tcp, void *end, __u32 size, __u8 tos, struct digest *d)
{
	if ((void *)(tcp + 1) > end)
		return UNREAD;
	__be16 port = bpf_htons(stain_port);
	if (tcp->dest != port || tcp->source != port)
		return OTHER;
	__u32 header = tcp->doff * 4;
	if (header < sizeof(*tcp) || header > size)
		return OTHER;
	__u8 flags = ((__u8 *)tcp)[13];
	switch (flags & (FIN | SYN | RST | ACK)) {
	case SYN:
	case RST:
		if ((tos ^ stain_tos) & 0xfc)
			return OTHER;
		break;
	case SYN | ACK:
	case RST | ACK:
		break; // not every guest reflects the ToS in it; there is no flow cache here to suffer
	default:
		return OTHER;
	}
	d->seq = bpf_ntohl(tcp->seq);
	d->ack = bpf_ntohl(tcp->ack_seq);
	d->flags = flags;
	d->scheme = SCHEME_TCP;
	return STAINED;
}

// echo fills d as segment does, from the ICMP header at icmp. The types of a request and of a
// reply are those of the packet's IP version.
static __always_inline int echo(struct echohdr *icmp, void *end, __u32 size, __u8 tos, __u8 request,
				__u8 reply, struct digest *d)
{
	if ((tos ^ stain_tos) & 0xfc)
		return OTHER;
	if ((void *)(icmp + 1) > end)
		return UNREAD;
	if (size < sizeof(*icmp) || icmp->code || (icmp->type != request && icmp->type != reply))
		return OTHER;
	d->seq = bpf_ntohl(icmp->token);
	d->ack = 0;
	d->flags = icmp->type;
	d->scheme = SCHEME_ICMP;
	return STAINED;
}

// match4 and match6 judge the packet that begins at ip and has len bytes.
static __always_inline int match4(struct iphdr *ip, void *end, __u32 len, struct digest *d)
{
	if ((void *)(ip + 1) > end)
		return UNREAD;
	if ((ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_ICMP) || ip->version != 4 || ip->ihl < 5)
		return OTHER;
	if (ip->frag_off & bpf_htons(0x3fff)) // More Fragments and the offset
		return OTHER;
	__u32 header = ip->ihl * 4, total = bpf_ntohs(ip->tot_len);
	if (total > len || total < header)
		return OTHER;
	void *payload = (void *)ip + header;
	int verdict = ip->protocol == IPPROTO_TCP
			      ? segment(payload, end, total - header, ip->tos, d)
			      : echo(payload, end, total - header, ip->tos, ECHO_REQUEST, ECHO_REPLY, d);
	if (verdict != STAINED)
		return verdict;
	static const __u8 mapped[12] = {[10] = 0xff, [11] = 0xff};
	__builtin_memcpy(d->src, mapped, 12);
	__builtin_memcpy(d->dst, mapped, 12);
	__builtin_memcpy(d->src + 12, &ip->saddr, 4);
	__builtin_memcpy(d->dst + 12, &ip->daddr, 4);
	d->ttl = ip->ttl;
	return STAINED;
}

// mapped tells whether an address is an IPv4 one in disguise.
static __always_inline int mapped(const struct in6_addr *a)
{
	return !a->s6_addr32[0] && !a->s6_addr32[1] && a->s6_addr32[2] == bpf_htonl(0xffff);
}

// Extension headers are none of ours: a packet that has any is not a probe.
static __always_inline int match6(struct ipv6hdr *ip, void *end, __u32 len, struct digest *d)
{
	if ((void *)(ip + 1) > end)
		return UNREAD;
	if ((ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_ICMPV6) || ip->version != 6)
		return OTHER;
	__u32 size = bpf_ntohs(ip->payload_len);
	if (size + sizeof(*ip) > len)
		return OTHER;
	__u8 tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	void *payload = ip + 1;
	int verdict = ip->nexthdr == IPPROTO_TCP
			      ? segment(payload, end, size, tos, d)
			      : echo(payload, end, size, tos, ECHO_REQUEST_V6, ECHO_REPLY_V6, d);
	if (verdict != STAINED)
		return verdict;
	if (mapped(&ip->saddr) || mapped(&ip->daddr))
		return OTHER; // it would pass for the IPv4 packet
	__builtin_memcpy(d->src, &ip->saddr, 16);
	__builtin_memcpy(d->dst, &ip->daddr, 16);
	d->ttl = ip->hop_limit;
	return STAINED;
}

// match judges a frame. If it is STAINED, it writes to d all that the frame itself says; else d
// may be left as it was, so that user traffic does not pay for clearing it.
static __noinline int match(struct __sk_buff *skb, struct digest *d)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	void *ip = eth + 1;
	__u32 len = skb->len - sizeof(*eth);
	if (ip > end)
		return UNREAD;
	__be16 proto = eth->h_proto;
	if (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD)) {
		__be16 *tag = ip; // TCI, and the type that follows
		ip += 4;
		len -= 4;
		if (ip > end)
			return UNREAD;
		proto = tag[1];
	}
	if (proto == bpf_htons(ETH_P_IP))
		return match4(ip, end, len, d);
	if (proto == bpf_htons(ETH_P_IPV6))
		return match6(ip, end, len, d);
	return OTHER;
}

// answer tells whether a stained packet is the guest's, not the prober's.
static __always_inline int answer(const struct digest *d)
{
	if (d->scheme == SCHEME_ICMP)
		return d->flags == ECHO_REPLY || d->flags == ECHO_REPLY_V6;
	return d->flags & ACK;
}

// withhold tells whether the guest must not see this packet: the probe, what withdraws it, or an
// answer to it. Tokens as in package stain.
static __always_inline int withhold(const struct digest *d)
{
	struct probe p = {.token = d->seq};
	if (d->scheme == SCHEME_TCP && d->flags & ACK)
		p.token = d->ack - 1;
	else if (d->scheme == SCHEME_TCP && d->flags & RST)
		p.token = d->seq - 1;
	__builtin_memcpy(p.dst, answer(d) ? d->src : d->dst, 16);
	__u64 *until = bpf_map_lookup_elem(&withheld, &p);
	return until && *until > d->at;
}

SEC("tc")
int to_instance(struct __sk_buff *skb)
{
	struct digest d;
	int verdict = match(skb, &d);
	if (verdict == UNREAD) {
		// Headers in fragments of the socket buffer: rare, and the switch has usually
		// gathered them. A frame that ends before its headers comes here as well.
		__u32 have = skb->data_end - skb->data, want = skb->len;
		if (want > MAX_HEADERS)
			want = MAX_HEADERS;
		if (have >= want || bpf_skb_pull_data(skb, want))
			return NEXT;
		verdict = match(skb, &d);
	}
	if (verdict != STAINED)
		return NEXT;

	__u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&stats, &zero);
	if (!count)
		return NEXT; // cannot be: the array has this element
	d.at = bpf_ktime_get_ns();
	d.ifindex = skb->ifindex;
	d.withheld = withhold(&d);
	if (d.withheld)
		count->withheld++;
	// Without room the guest is still not to see what it must not.
	if (bpf_ringbuf_output(&samples, &d, sizeof(d), 0))
		count->lost++;
	else
		count->received++;
	return d.withheld ? CONSUME() : NEXT;
}
