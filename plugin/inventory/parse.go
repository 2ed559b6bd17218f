package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/dyetrace/dyetrace/stain"
)

// maxSegmentationID is 24 bits: a VNI (RFC 7348, section 5), and as much of a GRE key as
// samples carry.
const maxSegmentationID = 1<<24 - 1

// document is one file as read.
type document struct {
	path string
	data []byte
}

// spot is a place in a file, with the field that stands there.
type spot struct {
	path  string
	line  int
	field string
}

func (s spot) in(key string, line int) spot {
	if s.field != "" {
		key = s.field + "." + key
	}
	return spot{s.path, line, key}
}

func (s spot) at(i, line int) spot {
	return spot{s.path, line, s.field + "[" + strconv.Itoa(i) + "]"}
}

// parser collects problems instead of stopping at the first: whoever mends a file of
// thousands of instances wants to run it once.
type parser struct {
	problems []error
	file     File
	// where[i] are the spots of networks[i] and instances[i], for checks across entries.
	networkAt  []networkSpots
	instanceAt []instanceSpots
	hostAt     map[string]spot // by name
}

// networkSpots are the spots of a network, those of its lists in their order.
type networkSpots struct {
	fields
	cidrs, gateways []spot
}

// instanceSpots are the spots of an instance, those of its addresses in their order.
type instanceSpots struct {
	fields
	ips []spot
}

// fields are the spots of one entry's values by key, "" being the entry itself.
type fields map[string]spot

func (f fields) of(key string) spot {
	if s, ok := f[key]; ok {
		return s
	}
	s := f[""]
	return s.in(key, s.line)
}

func (p *parser) fail(s spot, format string, args ...any) {
	p.problems = append(p.problems, &Problem{s.path, s.line, s.field, fmt.Sprintf(format, args...)})
}

func parse(docs []document) (File, error) {
	p := parser{hostAt: map[string]spot{}}
	for _, d := range docs {
		p.file.Paths = append(p.file.Paths, d.path)
		p.document(d)
	}
	p.checkNetworks()
	p.checkInstances()
	if len(p.problems) > 0 {
		return File{}, errors.Join(p.problems...)
	}
	p.order()
	return p.file, nil
}

// order puts IPv4 before IPv6, and a gateway's link-local address last.
func (p *parser) order() {
	for i := range p.file.Networks {
		nw := &p.file.Networks[i]
		slices.SortStableFunc(nw.CIDRs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
		slices.SortStableFunc(nw.GatewayIPs, func(a, b netip.Addr) int { return slot(a) - slot(b) })
	}
	for i := range p.file.Instances {
		slices.SortStableFunc(p.file.Instances[i].IPs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	}
}

func (p *parser) document(d document) {
	top := spot{path: d.path, line: 1}
	dec := yaml.NewDecoder(bytes.NewReader(d.data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		p.fail(top, "file is empty (want networks: and instances:)")
		return
	case err != nil:
		p.syntax(top, err)
		return
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		p.fail(spot{path: d.path, line: more.Line}, "a second YAML document (want one per file)")
	case !errors.Is(err, io.EOF):
		p.syntax(top, err)
		return
	}
	root := doc.Content[0]
	if isNull(root) {
		p.fail(top, "file is empty (want networks: and instances:)")
		return
	}
	p.mapping(top, root, map[string]func(spot, *yaml.Node){
		"networks":  func(s spot, n *yaml.Node) { p.sequence(s, n, p.network) },
		"instances": func(s spot, n *yaml.Node) { p.sequence(s, n, p.instance) },
		"hosts":     func(s spot, n *yaml.Node) { p.sequence(s, n, p.host) },
	})
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntax reports what the YAML library says, with its line in the place of ours.
func (p *parser) syntax(s spot, err error) {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		s.line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	p.fail(s, "not YAML: %s", strings.TrimPrefix(text, "yaml: "))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// resolve follows an alias (*name) to what it stands for. The schema is of fixed depth, so an
// alias to something that contains it ends at a value of the wrong type.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// mapping calls the function of each key. A key without one is refused, as is one twice;
// a key without value counts as absent. The result has the spot of each key that was there;
// it is nil where there is no mapping at all.
func (p *parser) mapping(s spot, n *yaml.Node, keys map[string]func(spot, *yaml.Node)) fields {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		p.fail(s, "%s (want a mapping with %s)", describe(n), strings.Join(sorted(keys), ", "))
		return nil
	}
	at := fields{"": s}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		ks := s.in(key.Value, key.Line)
		read, known := keys[key.Value]
		_, twice := at[key.Value]
		switch {
		case !known:
			p.fail(ks, "unknown key (want one of %s)", strings.Join(sorted(keys), ", "))
		case twice:
			p.fail(ks, "given twice")
		case !isNull(value):
			at[key.Value] = ks
			read(ks, value)
		}
	}
	return at
}

func (p *parser) sequence(s spot, n *yaml.Node, read func(spot, *yaml.Node)) {
	n = resolve(n)
	if n.Kind != yaml.SequenceNode {
		p.fail(s, "%s (want a list)", describe(n))
		return
	}
	for i, e := range n.Content {
		read(s.at(i, e.Line), e)
	}
}

// text reads a scalar as it is written, whatever type YAML would see in it: a network called
// "no" or "1e3" keeps its name.
func (p *parser) text(into *string) func(spot, *yaml.Node) {
	return func(s spot, n *yaml.Node) {
		n = resolve(n)
		if n.Kind != yaml.ScalarNode {
			p.fail(s, "%s (want one value)", describe(n))
			return
		}
		*into = n.Value
	}
}

// value reads a scalar and hands it to set, whose error becomes the problem.
func (p *parser) value(set func(string) error) func(spot, *yaml.Node) {
	return func(s spot, n *yaml.Node) {
		n = resolve(n)
		if n.Kind != yaml.ScalarNode {
			p.fail(s, "%s (want one value)", describe(n))
			return
		}
		if err := set(n.Value); err != nil {
			p.fail(s, "%s", err)
		}
	}
}

// several reads one value, or a list of them, into values and the spot of each. What cannot be
// read becomes a problem and a zero value, so that spots and values keep step.
func several[T any](p *parser, into *[]T, at *[]spot, read func(string) (T, error)) func(spot, *yaml.Node) {
	return func(s spot, n *yaml.Node) {
		one := func(s spot, n *yaml.Node) {
			var v T
			p.value(func(text string) (err error) { v, err = read(text); return err })(s, n)
			*into, *at = append(*into, v), append(*at, s)
		}
		switch list := resolve(n); {
		case list.Kind == yaml.ScalarNode:
			one(s, list)
		case list.Kind == yaml.SequenceNode && len(list.Content) == 0:
			p.fail(s, "an empty list (want one value at least)")
		case list.Kind == yaml.SequenceNode:
			p.sequence(s, list, one)
		default:
			p.fail(s, "%s (want one value, or a list)", describe(list))
		}
	}
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias of an alias"
	default:
		return strconv.Quote(n.Value)
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (p *parser) network(s spot, n *yaml.Node) {
	var nw Network
	var gateway fields
	var spots networkSpots
	at := p.mapping(s, n, map[string]func(spot, *yaml.Node){
		"name":   p.value(func(v string) error { nw.Name = v; return checkName(v) }),
		"cidr":   several(p, &nw.CIDRs, &spots.cidrs, parseCIDR),
		"router": p.value(func(v string) error { nw.Router = v; return checkName(v) }),
		"segmentation_id": p.value(func(v string) (err error) {
			nw.SegmentationID, err = parseSegmentationID(v)
			return err
		}),
		"gateway": func(s spot, n *yaml.Node) {
			gateway = p.mapping(s, n, map[string]func(spot, *yaml.Node){
				"ip":  several(p, &nw.GatewayIPs, &spots.gateways, parseIP),
				"mac": p.value(func(v string) (err error) { nw.GatewayMAC, err = parseMAC(v); return err }),
			})
		},
	})
	if at == nil {
		return
	}
	p.require(at, "name", "cidr")
	if gateway != nil {
		p.require(gateway, "ip", "mac")
	} else if _, tried := at["gateway"]; nw.Router != "" && !tried {
		p.fail(at.of("router"), "router %q without a gateway (want gateway: {ip: …, mac: …}, where routed probes go)", nw.Router)
	}
	p.file.Networks = append(p.file.Networks, nw)
	spots.fields = at
	p.networkAt = append(p.networkAt, spots)
}

func (p *parser) instance(s spot, n *yaml.Node) {
	in := Instance{Source: s.path}
	var spots instanceSpots
	at := p.mapping(s, n, map[string]func(spot, *yaml.Node){
		"name":    p.value(func(v string) error { in.Name = v; return checkInstanceName(v) }),
		"network": p.text(&in.Network),
		"mac":     p.value(func(v string) (err error) { in.MAC, err = parseMAC(v); return err }),
		"ip":      several(p, &in.IPs, &spots.ips, parseIP),
		"host":    p.value(func(v string) error { in.Host = v; return checkName(v) }),
		"port":    p.value(func(v string) error { in.Port = v; return checkName(v) }),
	})
	if at == nil {
		return
	}
	p.require(at, "name", "network", "mac", "ip")
	if in.Port != "" && in.Host == "" {
		p.fail(at.of("port"), "port %q without a host (want host: too; port names repeat between hosts)", in.Port)
	}
	p.file.Instances = append(p.file.Instances, in)
	spots.fields = at
	p.instanceAt = append(p.instanceAt, spots)
}

func (p *parser) host(s spot, n *yaml.Node) {
	var name, rack string
	at := p.mapping(s, n, map[string]func(spot, *yaml.Node){
		"name": p.value(func(v string) error { name = v; return checkName(v) }),
		"rack": p.value(func(v string) error { rack = v; return checkName(v) }),
	})
	if at == nil {
		return
	}
	p.require(at, "name")
	p.unique(p.hostAt, name, at.of("name"), fmt.Sprintf("host %q", name))
	if rack != "" {
		if p.file.Racks == nil {
			p.file.Racks = map[string]string{}
		}
		p.file.Racks[name] = rack
	}
}

func (p *parser) require(at fields, keys ...string) {
	for _, key := range keys {
		if _, ok := at[key]; !ok {
			p.fail(at.of(key), "missing")
		}
	}
}

func (p *parser) checkNetworks() {
	names := map[string]spot{}
	for i, nw := range p.file.Networks {
		at := p.networkAt[i]
		p.unique(names, nw.Name, at.of("name"), fmt.Sprintf("network %q", nw.Name))
		p.checkPrefixes(nw, at)
		p.checkGateway(nw, at)
	}
}

// checkPrefixes refuses prefixes of one network that lie in each other: which of them an
// address is of could not be told.
func (p *parser) checkPrefixes(nw Network, at networkSpots) {
	for i, c := range nw.CIDRs {
		for _, before := range nw.CIDRs[:i] {
			if c.IsValid() && before.IsValid() && c.Overlaps(before) {
				p.fail(at.cidrs[i], "%s overlaps %s (want prefixes that share no address)", c, before)
				break
			}
		}
	}
}

// checkGateway holds a gateway to one address of each slot, inside the network.
func (p *parser) checkGateway(nw Network, at networkSpots) {
	var taken [slots]netip.Addr
	for i, a := range nw.GatewayIPs {
		if !a.IsValid() {
			continue
		}
		if first := taken[slot(a)]; first.IsValid() {
			p.fail(at.gateways[i], "%s beside %s (want at most one IPv4, one IPv6 and one link-local IPv6 address)", a, first)
			continue
		}
		taken[slot(a)] = a
		if reason := outside(a, nw.CIDRs); reason != "" {
			p.fail(at.gateways[i], "%s", reason)
		}
	}
}

// slots is how many addresses a gateway may have.
const slots = 3

// slot says which of its addresses a gateway's is: IPv4, IPv6, or link-local IPv6.
func slot(a netip.Addr) int {
	switch {
	case a.Is4():
		return 0
	case LinkLocal(a):
		return 2
	}
	return 1
}

// unique reports a value that stands in two places, naming the first.
func (p *parser) unique(seen map[string]spot, key string, s spot, what string) {
	if key == "" {
		return
	}
	if first, ok := seen[key]; ok {
		p.fail(s, "%s is taken already, at %s:%d", what, first.path, first.line)
		return
	}
	seen[key] = s
}

func (p *parser) checkInstances() {
	networks := make(map[string]Network, len(p.file.Networks))
	for _, nw := range p.file.Networks {
		networks[nw.Name] = nw
	}
	names, addresses, macs, ports := map[string]spot{}, map[string]spot{}, map[string]spot{}, map[string]spot{}
	for i, in := range p.file.Instances {
		at := p.instanceAt[i]
		nw, ok := networks[in.Network]
		if !ok {
			if in.Network != "" {
				p.fail(at.of("network"), "no network is called %q (want one of %s)", in.Network, list(sorted(networks)))
			}
			continue
		}
		if in.Name != "" {
			p.unique(names, in.Ref(), at.of("name"), fmt.Sprintf("%q of network %s", in.Name, in.Network))
		}
		if in.MAC != (stain.MAC{}) {
			p.unique(macs, in.Network+"/"+in.MAC.String(), at.of("mac"), fmt.Sprintf("%s in network %s", in.MAC, in.Network))
		}
		if in.Port != "" {
			p.unique(ports, in.Host+"/"+in.Port, at.of("port"), fmt.Sprintf("port %s of %s", in.Port, in.Host))
		}
		for k, a := range in.IPs {
			if a.IsValid() {
				p.unique(addresses, in.Network+"/"+a.String(), at.ips[k], fmt.Sprintf("%s in network %s", a, in.Network))
				p.checkAddress(a, nw, at.ips[k])
			}
		}
	}
}

// checkAddress holds an instance's address to its network.
func (p *parser) checkAddress(a netip.Addr, nw Network, s spot) {
	if slices.Contains(nw.GatewayIPs, a) {
		p.fail(s, "%s is the gateway of network %s", a, nw.Name)
		return
	}
	if reason := outside(a, nw.CIDRs); reason != "" {
		p.fail(s, "%s", reason)
		return
	}
	for _, c := range nw.CIDRs {
		// A gateway may bear it; a host may not (RFC 4291, section 2.6.1), but for /127
		// (RFC 6164) and /128.
		if a.Is6() && a == c.Addr() && c.Bits() < 127 {
			p.fail(s, "%s is the address of any router of %s (want an address of a host)", a, c)
		}
	}
}

// list joins at most five names, so that a typo does not print a whole cloud.
func list(names []string) string {
	const most = 5
	switch {
	case len(names) == 0:
		return "none: the file has no networks"
	case len(names) > most:
		return strings.Join(names[:most], ", ") + ", …"
	default:
		return strings.Join(names, ", ")
	}
}

// outside says why an address cannot belong to a host of the prefixes; empty if it can. A
// link-local IPv6 address is of every link. A prefix that could not be read holds everything.
func outside(a netip.Addr, prefixes []netip.Prefix) string {
	if len(prefixes) == 0 || LinkLocal(a) {
		return ""
	}
	names := make([]string, len(prefixes))
	for i, c := range prefixes {
		if !c.IsValid() {
			return ""
		}
		if c.Contains(a) {
			return edge(a, c)
		}
		names[i] = c.String()
	}
	return fmt.Sprintf("%s is not in %s", a, strings.Join(names, ", "))
}

// edge says which address of an IPv4 prefix is no host's. Network and broadcast address are
// none (RFC 1122, section 3.2.1.3), but for /31 (RFC 3021) and /32.
func edge(a netip.Addr, prefix netip.Prefix) string {
	if !a.Is4() || prefix.Bits() >= 31 {
		return ""
	}
	first := prefix.Addr().As4()
	last := first
	for bit := prefix.Bits(); bit < 32; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	switch a.As4() {
	case first:
		return fmt.Sprintf("%s is the network address of %s (want an address of a host)", a, prefix)
	case last:
		return fmt.Sprintf("%s is the broadcast address of %s (want an address of a host)", a, prefix)
	}
	return ""
}

// checkName refuses what could not be told apart in NETWORK/NAME or on a command line.
func checkName(v string) error {
	switch {
	case v == "":
		return errors.New("empty")
	case strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }):
		return fmt.Errorf("%q has a blank or a slash (want a name without)", v)
	}
	return nil
}

func checkInstanceName(v string) error {
	if _, err := netip.ParseAddr(v); err == nil {
		return fmt.Errorf("%q reads as an address (want a name, so that NETWORK/NAME and NETWORK/ADDRESS stay apart)", v)
	}
	return checkName(v)
}

func parseMAC(v string) (stain.MAC, error) {
	m, err := stain.ParseMAC(v)
	switch {
	case err != nil:
		return stain.MAC{}, fmt.Errorf("%q is not a MAC address (want six hex bytes, such as fa:16:3e:00:00:01)", v)
	case m == stain.MAC{}:
		return stain.MAC{}, fmt.Errorf("%s is nobody's MAC address (want six hex bytes, such as fa:16:3e:00:00:01)", v)
	case m[0]&1 != 0:
		return stain.MAC{}, fmt.Errorf("%s is a group address (want one whose first byte is even, such as fa:16:3e:00:00:01)", v)
	}
	return m, nil
}

func parseIP(v string) (netip.Addr, error) {
	a, err := netip.ParseAddr(v)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address (want one such as 10.0.1.11 or fd00:1::11)", v)
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone, which only its own host knows (want %s)", v, a.WithZone(""))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is IPv4 written as IPv6 (want %s)", v, a.Unmap())
	case a.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%s is nobody's address (want one such as 10.0.1.11 or fd00:1::11)", v)
	case a.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is a multicast address (want that of one host)", v)
	case a.IsLoopback():
		return netip.Addr{}, fmt.Errorf("%s never leaves a host (want an address that others can send to)", v)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("%s is everybody's address (want that of one host)", v)
	}
	return a, nil
}

func parseCIDR(v string) (netip.Prefix, error) {
	if addr, bits, ok := strings.Cut(v, "/"); ok { // netip takes no zone in a prefix
		if a, err := netip.ParseAddr(addr); err == nil && a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%s has a zone, which only a host knows (want %s/%s)", v, a.WithZone(""), bits)
		}
	}
	c, err := netip.ParsePrefix(v)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix (want one such as 10.0.1.0/24 or fd00:1::/64)", v)
	case c.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is IPv4 written as IPv6 (want one such as 10.0.1.0/24)", v)
	case c != c.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has host bits set (want %s)", v, c.Masked())
	case c.Addr().IsMulticast():
		return netip.Prefix{}, fmt.Errorf("%s is of multicast addresses (want a prefix of hosts)", v)
	}
	return c, nil
}

func parseSegmentationID(v string) (uint32, error) {
	id, err := strconv.ParseUint(v, 10, 32)
	if err != nil || id == 0 || id > maxSegmentationID {
		return 0, fmt.Errorf("%q is not a tunnel key (want a number from 1 to %d)", v, maxSegmentationID)
	}
	return uint32(id), nil
}
