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
	networkAt  []fields
	instanceAt []fields
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
	var p parser
	for _, d := range docs {
		p.file.Paths = append(p.file.Paths, d.path)
		p.document(d)
	}
	p.checkNetworks()
	p.checkInstances()
	if len(p.problems) > 0 {
		return File{}, errors.Join(p.problems...)
	}
	return p.file, nil
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
	at := p.mapping(s, n, map[string]func(spot, *yaml.Node){
		"name":   p.value(func(v string) error { nw.Name = v; return checkName(v) }),
		"cidr":   p.value(func(v string) (err error) { nw.CIDR, err = parseCIDR(v); return err }),
		"router": p.value(func(v string) error { nw.Router = v; return checkName(v) }),
		"segmentation_id": p.value(func(v string) (err error) {
			nw.SegmentationID, err = parseSegmentationID(v)
			return err
		}),
		"gateway": func(s spot, n *yaml.Node) {
			gateway = p.mapping(s, n, map[string]func(spot, *yaml.Node){
				"ip":  p.value(func(v string) (err error) { nw.GatewayIP, err = parseIP(v); return err }),
				"mac": p.value(func(v string) (err error) { nw.GatewayMAC, err = parseMAC(v); return err }),
			})
		},
	})
	if at == nil {
		return
	}
	for key, gs := range gateway {
		if key != "" {
			at["gateway."+key] = gs
		}
	}
	p.require(at, "name", "cidr")
	if gateway != nil {
		p.require(gateway, "ip", "mac")
	} else if _, tried := at["gateway"]; nw.Router != "" && !tried {
		p.fail(at.of("router"), "router %q without a gateway (want gateway: {ip: …, mac: …}, where routed probes go)", nw.Router)
	}
	p.file.Networks = append(p.file.Networks, nw)
	p.networkAt = append(p.networkAt, at)
}

func (p *parser) instance(s spot, n *yaml.Node) {
	in := Instance{Source: s.path}
	at := p.mapping(s, n, map[string]func(spot, *yaml.Node){
		"name":    p.value(func(v string) error { in.Name = v; return checkInstanceName(v) }),
		"network": p.text(&in.Network),
		"mac":     p.value(func(v string) (err error) { in.MAC, err = parseMAC(v); return err }),
		"ip":      p.value(func(v string) (err error) { in.IP, err = parseIP(v); return err }),
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
	p.instanceAt = append(p.instanceAt, at)
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
		if !nw.GatewayIP.IsValid() {
			continue
		}
		if reason := outside(nw.GatewayIP, nw.CIDR); reason != "" {
			p.fail(at.of("gateway.ip"), "%s", reason)
		}
	}
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
		if !in.IP.IsValid() {
			continue
		}
		p.unique(addresses, in.Network+"/"+in.IP.String(), at.of("ip"), fmt.Sprintf("%s in network %s", in.IP, in.Network))
		if in.IP == nw.GatewayIP {
			p.fail(at.of("ip"), "%s is the gateway of network %s", in.IP, nw.Name)
		} else if reason := outside(in.IP, nw.CIDR); reason != "" {
			p.fail(at.of("ip"), "%s", reason)
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

// outside says why an address cannot belong to a host of the prefix; empty if it can.
// Network and broadcast address are no hosts (RFC 1122, section 3.2.1.3), but for /31
// (RFC 3021) and /32. A prefix that could not be read holds everything.
func outside(a netip.Addr, prefix netip.Prefix) string {
	switch {
	case !prefix.IsValid():
		return ""
	case !prefix.Contains(a):
		return fmt.Sprintf("%s is not in %s", a, prefix)
	case prefix.Bits() >= 31:
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
		return netip.Addr{}, fmt.Errorf("%q is not an IP address (want one such as 10.0.1.11)", v)
	case !a.Is4():
		return netip.Addr{}, fmt.Errorf("%s is IPv6, which probes cannot be yet (want an IPv4 address, such as 10.0.1.11)", v)
	}
	return a, nil
}

func parseCIDR(v string) (netip.Prefix, error) {
	c, err := netip.ParsePrefix(v)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix (want one such as 10.0.1.0/24)", v)
	case !c.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("%s is IPv6, which probes cannot be yet (want an IPv4 prefix, such as 10.0.1.0/24)", v)
	case c != c.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has host bits set (want %s)", v, c.Masked())
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
