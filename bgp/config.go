package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
)

// Config is the group "bgp" of a controller's configuration.
type Config struct {
	// RouterID is an IPv4 address that no other speaker of the network has (RFC 6286).
	RouterID string `koanf:"router_id"`
	// AS of our own, 1 to 4294967295.
	AS int64 `koanf:"as"`
	// Listen is HOST:PORT; without a host all addresses, of IPv4 and IPv6. Empty: nowhere, so that
	// we dial every peer.
	Listen string `koanf:"listen"`
	Peers  []Peer `koanf:"peers"`
	// Networks give routes the VNI that they do not name: those with MPLS labels, and of VPNs.
	Networks []Network `koanf:"networks"`
}

// Peer is one speaker to learn from.
type Peer struct {
	// Address of the peer, which tells it from others.
	Address string `koanf:"address"`
	// Port to dial; 0 means 179.
	Port int `koanf:"port"`
	// AS of the peer.
	AS int64 `koanf:"as"`
	// LocalAS is ours towards this peer; 0 means [Config.AS].
	LocalAS int64 `koanf:"local_as"`
	// Source is our address of the session. Empty: the routing table chooses.
	Source string `koanf:"source"`
	// Passive waits for the peer to dial.
	Passive bool `koanf:"passive"`
	// MD5 is the key of TCP's signatures (RFC 2385). Empty: none.
	MD5 Secret `koanf:"md5"`
	// GTSM is how many hops away the peer may be, at most (RFC 5082); 1 is a neighbour. 0 means that
	// any distance will do.
	GTSM int `koanf:"gtsm"`
	// HoldTime that we propose; the lower one of both sides holds. 0 means 90 s (RFC 4271,
	// section 10).
	HoldTime time.Duration `koanf:"hold_time"`
	// Families are "evpn", "vpnv4" and "vpnv6". Empty: evpn.
	Families []string `koanf:"families"`
	// RTs are route targets such as 64512:100, of which a route needs one. Empty: any.
	RTs []string `koanf:"rts"`
	// MaxRoutes before the session ends; 0 means [DefaultMaxRoutes].
	MaxRoutes int `koanf:"max_routes"`
	// NextHops that routes may have: prefixes, or "known" for the VTEPs that the inventory knows.
	// Empty: any.
	NextHops []string `koanf:"next_hops"`
	// Encapsulation of routes that do not tell theirs: "vxlan" or "mpls". Empty: vxlan.
	Encapsulation string `koanf:"encapsulation"`
}

// Secret is a string that is not printed.
type Secret string

// String tells whether there is one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(set)"
}

// GoString is String.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText is String, for JSON, YAML and slog.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	// DefaultMaxRoutes of a peer: twice what a fabric of a million MACs has. At some 109 octets a
	// route, a peer gone mad costs us 220 MB, not the process.
	DefaultMaxRoutes = 2_000_000

	defaultPort = 179
	// Below 3 s RFC 4271 refuses it (section 4.2); the field has 16 bits.
	minHoldTime, defaultHoldTime, maxHoldTime = 3 * time.Second, 90 * time.Second, 65535 * time.Second
	// TCP_MD5SIG_MAXKEYLEN of linux/tcp.h.
	maxMD5 = 80
	known  = "known"
	maxVNI = 1<<24 - 1 // RFC 7348, section 5
	wantRT = "a route target such as 64512:100, 4200000000:100 or 10.0.0.1:100"
)

// family is an address family and a subsequent one (RFC 4760).
type family struct {
	afi  uint16
	safi uint8
}

// families are those that can be learned: RFC 7432, RFC 4364, RFC 4659.
var families = map[string]family{"evpn": {25, 70}, "vpnv4": {1, 128}, "vpnv6": {2, 128}}

func (f family) String() string {
	for name, g := range families {
		if f == g {
			return name
		}
	}
	return fmt.Sprintf("%d/%d", f.afi, f.safi)
}

// encapsulations are tunnel types of RFC 9012.
var encapsulations = map[string]wire.Encap{"": wire.EncapVXLAN, "vxlan": wire.EncapVXLAN, "mpls": wire.EncapMPLS}

// Validate checks every value; the error joins one line per bad key, as a path from "bgp".
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("bgp."+format, args...)) }
	if id, err := netip.ParseAddr(c.RouterID); err != nil || !id.Is4() || id.IsUnspecified() {
		bad("router_id: %q (want an IPv4 address of this host, such as 10.0.0.9)", c.RouterID)
	}
	if !isAS(c.AS) {
		bad("as: %d (want a number from 1 to 4294967295)", c.AS)
	}
	if c.Listen != "" {
		if why := badListen(c.Listen); why != "" {
			bad("listen: %q: %s (want HOST:PORT, such as :179, or nothing)", c.Listen, why)
		}
	}
	return errors.Join(append(append(errs, validatePeers(c)...), validateNetworks(c.Networks)...)...)
}

func validatePeers(c Config) []error {
	var errs []error
	seen := map[netip.Addr]int{}
	for i, p := range c.Peers {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("bgp.peers[%d].%s", i, fmt.Sprintf(format, args...)))
		}
		p.validate(bad)
		if p.Passive && c.Listen == "" {
			bad("passive: true, but bgp.listen is empty (want one of them otherwise)")
		}
		addr := p.addr()
		if first, twice := seen[addr]; twice && addr.IsValid() {
			bad("address: %s is that of bgp.peers[%d] (want each peer once)", addr, first)
		}
		seen[addr] = i
	}
	return errs
}

func (p Peer) validate(bad func(string, ...any)) {
	addr := p.addr()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		bad("address: %q (want the IP address of a speaker, such as 10.0.0.1)", p.Address)
	}
	if p.Port < 0 || p.Port > 65535 {
		bad("port: %d (want a number from 1 to 65535, or 0 for 179)", p.Port)
	}
	if !isAS(p.AS) {
		bad("as: %d (want a number from 1 to 4294967295)", p.AS)
	}
	if p.LocalAS != 0 && !isAS(p.LocalAS) {
		bad("local_as: %d (want a number from 1 to 4294967295, or 0 for bgp.as)", p.LocalAS)
	}
	if p.Source != "" {
		if s, err := netip.ParseAddr(p.Source); err != nil || addr.IsValid() && s.Unmap().Is4() != addr.Is4() {
			bad("source: %q (want an address of this host, of the same IP version as the peer's)", p.Source)
		}
	}
	if len(p.MD5) > maxMD5 {
		bad("md5: %d bytes (want at most %d)", len(p.MD5), maxMD5)
	}
	if p.GTSM < 0 || p.GTSM > 254 {
		bad("gtsm: %d (want 1 to 254 hops, or 0 for any distance)", p.GTSM)
	}
	if h := p.HoldTime; h != 0 && (h < minHoldTime || h > maxHoldTime || h%time.Second != 0) {
		bad("hold_time: %v (want whole seconds from %v to %v)", h, minHoldTime, maxHoldTime)
	}
	if p.MaxRoutes < 0 {
		bad("max_routes: %d (want a number of routes, or 0 for %d)", p.MaxRoutes, DefaultMaxRoutes)
	}
	if _, ok := encapsulations[p.Encapsulation]; !ok {
		bad("encapsulation: %q (want vxlan or mpls)", p.Encapsulation)
	}
	p.validateLists(bad)
}

func (p Peer) validateLists(bad func(string, ...any)) {
	for i, f := range p.Families {
		if _, ok := families[f]; !ok {
			bad("families[%d]: %q (want evpn, vpnv4 or vpnv6)", i, f)
		} else if slices.Contains(p.Families[:i], f) {
			bad("families[%d]: %s is there already (want each family once)", i, f)
		}
	}
	for i, rt := range p.RTs {
		if _, err := parseRT(rt); err != nil {
			bad("rts[%d]: %q: %v (want %s)", i, rt, err, wantRT)
		}
	}
	for i, n := range p.NextHops {
		if n == known {
			continue
		}
		if _, err := parsePrefix(n); err != nil {
			bad("next_hops[%d]: %q (want a prefix such as 10.0.0.0/24, an address, or known)", i, n)
		}
	}
}

func isAS(as int64) bool { return as > 0 && as <= 1<<32-1 }

func badListen(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "no HOST:PORT"
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return fmt.Sprintf("host %q is no IP address", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Sprintf("port %q is no number from 1 to 65535", port)
	}
	return ""
}

// parsePrefix reads a prefix, or an address as the prefix that has only it.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// parseRT returns the extended communities that a route target may be: RFC 4360, sections 3.1, 3.2
// and 4, and RFC 5668. An AS number and a value that both have 16 bits fit two of them.
func parseRT(s string) ([]wire.RouteTarget, error) {
	left, right, ok := strings.Cut(s, ":")
	if !ok {
		return nil, errors.New("no colon")
	}
	n, err := strconv.ParseUint(right, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q is no 32-bit number", right)
	}
	if a, err := netip.ParseAddr(left); err == nil && a.Is4() {
		if n > 0xffff {
			return nil, fmt.Errorf("%d has more than the 16 bits beside an address", n)
		}
		b := a.As4()
		return []wire.RouteTarget{wire.RouteTarget(0x0102<<48 | uint64(binary.BigEndian.Uint32(b[:]))<<16 | n)}, nil
	}
	as, err := strconv.ParseUint(left, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an AS number nor an IPv4 address", left)
	}
	var rts []wire.RouteTarget
	if as <= 0xffff {
		rts = append(rts, wire.RouteTarget(0x0002<<48|as<<32|n))
	}
	if n <= 0xffff {
		rts = append(rts, wire.RouteTarget(0x0202<<48|as<<16|n))
	}
	if rts == nil {
		return nil, fmt.Errorf("%d has more than the 16 bits beside a four-octet AS number", n)
	}
	return rts, nil
}

func (p Peer) addr() netip.Addr {
	a, _ := netip.ParseAddr(p.Address)
	return a.Unmap()
}

func (p Peer) source() netip.Addr {
	a, _ := netip.ParseAddr(p.Source)
	return a.Unmap()
}

// families of a valid peer with defaults, in the order of configuration.
func (p Peer) families() []family {
	var fs []family
	for _, name := range p.Families {
		fs = append(fs, families[name])
	}
	return fs
}

// withDefaults puts values where a valid configuration has none.
func (p Peer) withDefaults(as int64) Peer {
	p.Address = p.addr().String()
	if p.Port == 0 {
		p.Port = defaultPort
	}
	if p.LocalAS == 0 {
		p.LocalAS = as
	}
	if len(p.Families) == 0 {
		p.Families = []string{"evpn"}
	}
	if p.HoldTime == 0 {
		p.HoldTime = defaultHoldTime
	}
	if p.MaxRoutes == 0 {
		p.MaxRoutes = DefaultMaxRoutes
	}
	return p
}

// feedOptions of a valid peer with defaults, where vteps are known.
func (p Peer) feedOptions(vteps []netip.Prefix) rib.PeerOptions {
	o := rib.PeerOptions{MaxRoutes: p.MaxRoutes, Default: encapsulations[p.Encapsulation]}
	for _, f := range p.families() {
		o.Families = append(o.Families, wire.Family(uint32(f.afi)<<8|uint32(f.safi)))
	}
	for _, s := range p.RTs {
		rts, _ := parseRT(s)
		o.RTs = append(o.RTs, rts...)
	}
	for _, s := range p.NextHops {
		if s == known {
			o.NextHops = append(o.NextHops, vteps...)
			continue
		}
		prefix, _ := parsePrefix(s)
		o.NextHops = append(o.NextHops, prefix)
	}
	if len(p.NextHops) > 0 && len(o.NextHops) == 0 {
		// No list would mean any; this address is no host's (RFC 1122, section 3.2.1.3).
		o.NextHops = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/32")}
	}
	return o
}

// sameSession tells whether a session for p will do for q: all but what a feed is told.
func (p Peer) sameSession(q Peer) bool {
	for _, x := range []*Peer{&p, &q} {
		x.RTs, x.MaxRoutes, x.NextHops, x.Encapsulation = nil, 0, nil, ""
	}
	return reflect.DeepEqual(p, q)
}
