package overlay

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Encapsulations that a network can have.
const (
	GRE    = "gre"
	VXLAN  = "vxlan"
	Geneve = "geneve" // of OVN's networks, and of no others
)

// Datapaths that a hypervisor's Open vSwitch can have (ovs-vswitchd.conf.db(5), datapath_type).
const (
	Netdev = "netdev" // in ovs-vswitchd; needs nothing of the kernel
	System = "system" // the kernel's own, of its module openvswitch
)

// MAC is an Ethernet address, written aa:bb:cc:dd:ee:ff.
type MAC [6]byte

// String returns the address as aa:bb:cc:dd:ee:ff.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText returns the address as aa:bb:cc:dd:ee:ff.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("%q is not an Ethernet address (aa:bb:cc:dd:ee:ff)", text)
	}
	copy(m[:], hw)
	return nil
}

// Spec says what an overlay consists of.
type Spec struct {
	Underlay  netip.Prefix `yaml:"underlay"`           // holds every VTEP; each host routes it to its gateway
	Datapath  string       `yaml:"datapath,omitempty"` // of all hypervisors; Netdev if empty
	EVPN      *EVPN        `yaml:"evpn,omitempty"`
	OVN       *OVN         `yaml:"ovn,omitempty"`
	Hosts     []Host       `yaml:"hosts"`
	Switches  []Host       `yaml:"switches,omitempty"` // only where there is EVPN
	Networks  []Network    `yaml:"networks"`
	Instances []Instance   `yaml:"instances"`
}

// EVPN is the control plane by which tunnel ends tell each other where instances are (RFC 8365).
type EVPN struct {
	AS         uint32      `yaml:"as"` // of all speakers
	Reflectors []Reflector `yaml:"reflectors"`
}

// Reflector is a speaker that passes on what the others say (RFC 4456).
type Reflector struct {
	Name    string     `yaml:"name"`    // its node
	Address netip.Addr `yaml:"address"` // by which tunnel ends reach it
	// Dials is a listener that waits to be dialed, by its management address. All others dial.
	Dials netip.Addr `yaml:"dials,omitempty"`
}

// OVN is the network controller, in place of the flows that this package computes (ovn-architecture(7)).
type OVN struct {
	Central string     `yaml:"central"` // the node with its databases
	Address netip.Addr `yaml:"address"` // by which hypervisors reach that, not over the underlay
}

// southboundPort is that of OVN's southbound database (ovn-sb(5), Debian's ovn-ctl).
const southboundPort = 6642

// Southbound returns where the southbound database is, as ovn-remote has it.
func (o OVN) Southbound() string { return fmt.Sprintf("tcp:%s", o.SouthboundAddress()) }

// SouthboundAddress returns ADDRESS:PORT of the southbound database.
func (o OVN) SouthboundAddress() netip.AddrPort { return netip.AddrPortFrom(o.Address, southboundPort) }

// Host is a tunnel end: a hypervisor, or a switch with bare-metal instances behind it.
type Host struct {
	Name    string       `yaml:"name"`
	Uplink  string       `yaml:"uplink,omitempty"`  // a hypervisor's interface to the fabric
	VTEP    netip.Prefix `yaml:"vtep"`              // its tunnel end, with the length of the rack's subnet
	Gateway netip.Addr   `yaml:"gateway,omitempty"` // the rack's router, to a hypervisor
}

// Gateway is a network's side of its router.
type Gateway struct {
	IP  Addrs `yaml:"ip"` // one of each of the network's versions
	MAC MAC   `yaml:"mac"`
}

// Network is a tenant's layer 2 network.
type Network struct {
	Name         string   `yaml:"name"`
	CIDR         Prefixes `yaml:"cidr"`
	Gateway      *Gateway `yaml:"gateway,omitempty"` // set exactly if Router is
	Router       string   `yaml:"router,omitempty"`  // networks with the same router reach each other
	Encap        string   `yaml:"encap"`             // GRE or VXLAN; with OVN Geneve
	Segmentation uint32   `yaml:"segmentation_id"`   // GRE key or VNI, 1 to 2²⁴−1
}

// Has reports whether the network carries a version.
func (n Network) Has(v Version) bool { return n.CIDR.Of(v).IsValid() }

// Instance is a guest with one port or, behind a switch, a machine of its own.
type Instance struct {
	Name    string `yaml:"name"`
	Network string `yaml:"network"`
	MAC     MAC    `yaml:"mac"`
	IP      Addrs  `yaml:"ip"`             // one of each of the network's versions
	Host    string `yaml:"host"`           // a hypervisor or a switch
	Port    string `yaml:"port,omitempty"` // the switch's interface to it; a guest has a tap
}

// Addresses returns all addresses of a version that the instance has: the one that it was
// given and, in IPv6, the link-local one that comes with its MAC.
func (i Instance) Addresses(v Version) []netip.Addr {
	ip := i.IP.Of(v)
	switch {
	case !ip.IsValid():
		return nil
	case v == V6:
		return []netip.Addr{ip, i.MAC.LinkLocal()}
	}
	return []netip.Addr{ip}
}

// InKernel reports whether the hypervisors forward in the kernel.
func (s *Spec) InKernel() bool { return s.Datapath == System }

// Answers reports whether bridges answer for others: of a version, who asks for an instance on another
// host or for a gateway. The kernel's datapath can for ARP; of neighbour discovery it can write
// neither the flags nor the type of an option (ovs-fields(7), nd_reserved and nd_options_type), so
// questions for instances are flooded.
func (s *Spec) Answers(v Version) bool { return v == V4 || !s.InKernel() }

// DatapathType returns what datapath_type of all bridges is.
func (s *Spec) DatapathType() string {
	if s.Datapath == "" {
		return Netdev
	}
	return s.Datapath
}

// Parse reads a specification in YAML and validates it. A key that it does not know is an
// error.
func Parse(r io.Reader) (*Spec, error) {
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	s := new(Spec)
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return s, nil
}

// Validate returns all that is wrong with the specification, joined, or nil.
func (s *Spec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !s.Underlay.IsValid() || !s.Underlay.Addr().Is4() {
		bad("underlay: want an IPv4 prefix that holds every VTEP")
	}
	if s.Datapath != "" && s.Datapath != Netdev && s.Datapath != System {
		bad("datapath: %q: want %s or %s", s.Datapath, Netdev, System)
	}
	if len(s.Hosts) == 0 {
		bad("hosts: want at least one")
	}
	seen := make(map[string]bool)
	once := func(kind, name string) {
		if name == "" {
			bad("%s: one has no name", kind)
		} else if seen[kind+name] {
			bad("%s: %s is there twice", kind, name)
		}
		seen[kind+name] = true
	}
	for _, h := range s.Hosts {
		once("hosts", h.Name)
		once("vtep", h.VTEP.Addr().String())
		if err := h.validate(s.Underlay); err != nil {
			bad("hosts: %s: %w", h.Name, err)
		}
	}
	for _, sw := range s.Switches {
		once("hosts", sw.Name)
		once("vtep", sw.VTEP.Addr().String())
		if !sw.VTEP.IsValid() || !s.Underlay.Contains(sw.VTEP.Addr()) {
			bad("switches: %s: vtep: want an address with prefix length inside %s", sw.Name, s.Underlay)
		}
	}
	if err := s.validateEVPN(); err != nil {
		bad("evpn: %w", err)
	}
	if err := s.validateOVN(); err != nil {
		bad("ovn: %w", err)
	}
	for _, n := range s.Networks {
		once("networks", n.Name)
		once("segmentation_id", fmt.Sprintf("%s %d", n.Encap, n.Segmentation))
		if err := n.validate(s.encaps()); err != nil {
			bad("networks: %s: %w", n.Name, err)
		}
	}
	for _, i := range s.Instances {
		once("instances", i.Name)
		for _, ip := range i.IP.All() {
			once("address", i.Network+" "+ip.String())
		}
		once("address", i.Network+" "+i.MAC.String())
		if err := i.validate(s); err != nil {
			bad("instances: %s: %w", i.Name, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Spec) validateEVPN() error {
	switch e := s.EVPN; {
	case e == nil && len(s.Switches) > 0:
		return errors.New("want it, or no switches: they learn where instances are by nothing else")
	case e == nil:
		return nil
	case e.AS == 0:
		return errors.New("as: want the number of the speakers' autonomous system")
	case len(e.Reflectors) == 0:
		return errors.New("reflectors: want at least one")
	case slices.ContainsFunc(e.Reflectors, func(r Reflector) bool { return r.Name == "" || !s.Underlay.Contains(r.Address) }):
		return fmt.Errorf("reflectors: want a name and an address inside %s of each", s.Underlay)
	}
	return nil
}

func (s *Spec) validateOVN() error {
	switch o := s.OVN; {
	case o == nil:
		return nil
	case s.EVPN != nil:
		return errors.New("want either it or evpn")
	case o.Central == "":
		return errors.New("central: want the name of the node with the databases")
	case !o.Address.IsValid() || s.Underlay.Contains(o.Address):
		return fmt.Errorf("address: want one outside of %s, which breaks may cut", s.Underlay)
	}
	return nil
}

// encaps returns what networks may be encapsulated by.
func (s *Spec) encaps() []string {
	if s.OVN != nil {
		return []string{Geneve}
	}
	return []string{GRE, VXLAN}
}

// TunnelBridge returns the bridge of a hypervisor that has the tunnels.
func (s *Spec) TunnelBridge() string {
	if s.OVN != nil {
		return Integration
	}
	return Tunnel
}

func (h Host) validate(underlay netip.Prefix) error {
	switch {
	case h.Uplink == "":
		return errors.New("uplink: want the name of the interface to the fabric")
	case !h.VTEP.IsValid() || !underlay.Contains(h.VTEP.Addr()):
		return fmt.Errorf("vtep: want an address with prefix length inside %s", underlay)
	case !h.VTEP.Contains(h.Gateway):
		return fmt.Errorf("gateway: want an address inside %s", h.VTEP.Masked())
	}
	return nil
}

func (n Network) validate(encaps []string) error {
	for _, cidr := range n.CIDR.All() {
		if cidr != cidr.Masked() {
			return fmt.Errorf("cidr: %s: want a prefix with no host bits", cidr)
		}
	}
	switch {
	case len(n.CIDR.All()) == 0:
		return errors.New("cidr: want an IPv4 prefix, an IPv6 prefix, or a list of both")
	case !slices.Contains(encaps, n.Encap):
		return fmt.Errorf("encap: %q: want %s", n.Encap, strings.Join(encaps, " or "))
	case n.Segmentation == 0 || n.Segmentation >= 1<<24:
		return fmt.Errorf("segmentation_id: %d: want 1 to %d", n.Segmentation, 1<<24-1)
	case (n.Gateway != nil) != (n.Router != ""):
		return errors.New("want both gateway and router, or neither")
	case n.Gateway != nil:
		if err := n.CIDR.each(n.Gateway.IP); err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
	}
	return nil
}

// each returns an error unless the addresses are one of each prefix.
func (p Prefixes) each(ip Addrs) error {
	for _, v := range Versions() {
		switch cidr, a := p.Of(v), ip.Of(v); {
		case cidr.IsValid() && !cidr.Contains(a):
			return fmt.Errorf("ip: want an address inside %s", cidr)
		case a.IsValid() && !cidr.IsValid():
			return fmt.Errorf("ip: %s: the network has no IPv%d prefix", a, v)
		}
	}
	return nil
}

func (i Instance) validate(s *Spec) error {
	n, ok := s.Network(i.Network)
	if !ok {
		return fmt.Errorf("network: there is no %q", i.Network)
	}
	if err := n.CIDR.each(i.IP); err != nil {
		return err
	}
	switch {
	case i.MAC[0]&1 != 0 || i.MAC == MAC{}:
		return fmt.Errorf("mac: %s: want a unicast address", i.MAC)
	case n.Gateway != nil && (n.Gateway.MAC == i.MAC ||
		slices.ContainsFunc(i.IP.All(), func(a netip.Addr) bool { return slices.Contains(n.Gateway.IP.All(), a) })):
		return errors.New("ip, mac: the gateway has it")
	case len(i.Name) > 63:
		return errors.New("name: want at most 63 letters")
	}
	if _, ok := s.End(i.Host); !ok {
		return fmt.Errorf("host: there is no %q", i.Host)
	}
	switch bare := s.Bare(i); {
	case bare && (n.Encap != VXLAN || n.Router != ""):
		return fmt.Errorf("host: %s is a switch: want a network of encap %s and with no router", i.Host, VXLAN)
	case bare != (i.Port != ""):
		return errors.New("port: want the switch's interface, for an instance behind a switch alone")
	}
	return nil
}

// Host returns the hypervisor of that name.
func (s *Spec) Host(name string) (Host, bool) {
	return byName(s.Hosts, func(h Host) bool { return h.Name == name })
}

// Switch returns the switch of that name.
func (s *Spec) Switch(name string) (Host, bool) {
	return byName(s.Switches, func(h Host) bool { return h.Name == name })
}

// End returns the hypervisor or switch of that name.
func (s *Spec) End(name string) (Host, bool) {
	return byName(s.ends(), func(h Host) bool { return h.Name == name })
}

func (s *Spec) ends() []Host { return slices.Concat(s.Hosts, s.Switches) }

// Bare reports whether the instance is a machine of its own, behind a switch.
func (s *Spec) Bare(i Instance) bool {
	_, ok := s.Switch(i.Host)
	return ok
}

// TunnelEnd is one end of a tunnel, as the other sees it.
type TunnelEnd struct {
	Encap string
	Host
}

// Tunnels returns where a hypervisor has tunnels to that nobody makes but the lab: by each
// encapsulation to every other one, by VXLAN to every switch; none with OVN, which makes its own.
func (s *Spec) Tunnels(host string) []TunnelEnd {
	var tunnels []TunnelEnd
	if s.OVN != nil {
		return nil
	}
	for _, o := range s.Hosts {
		if o.Name != host {
			tunnels = append(tunnels, TunnelEnd{GRE, o}, TunnelEnd{VXLAN, o})
		}
	}
	for _, o := range s.Switches {
		tunnels = append(tunnels, TunnelEnd{VXLAN, o})
	}
	return tunnels
}

// Port returns the name of the tunnel's port: see TunnelName.
func (t TunnelEnd) Port() string { return TunnelName(t.Encap, t.Host) }

// Network returns the network of that name.
func (s *Spec) Network(name string) (Network, bool) {
	return byName(s.Networks, func(n Network) bool { return n.Name == name })
}

// Instance returns the instance of that name.
func (s *Spec) Instance(name string) (Instance, bool) {
	return byName(s.Instances, func(i Instance) bool { return i.Name == name })
}

func byName[T any](list []T, is func(T) bool) (T, bool) {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i], true
	}
	var zero T
	return zero, false
}

// Joined reports whether instances of the two networks reach each other over some version: it
// is one network, or one router has both.
func (s *Spec) Joined(a, b string) bool {
	return slices.ContainsFunc(Versions(), func(v Version) bool { return s.JoinedOver(v, a, b) })
}

// JoinedOver is Joined for one version.
func (s *Spec) JoinedOver(v Version, a, b string) bool {
	na, okA := s.Network(a)
	nb, okB := s.Network(b)
	return okA && okB && na.Has(v) && nb.Has(v) && (a == b || na.Router != "" && na.Router == nb.Router)
}

// Pair is an ordered pair of instances.
type Pair struct {
	Src, Dst Instance
}

// Routed reports whether a router lies between the two.
func (p Pair) Routed() bool { return p.Src.Network != p.Dst.Network }

// Pairs returns all ordered pairs of which the first must reach the second over some version.
func (s *Spec) Pairs() []Pair { return s.pairs(s.Joined) }

// PairsOver returns all ordered pairs of which the first must reach the second over a version.
func (s *Spec) PairsOver(v Version) []Pair {
	return s.pairs(func(a, b string) bool { return s.JoinedOver(v, a, b) })
}

func (s *Spec) pairs(joined func(a, b string) bool) []Pair {
	var pairs []Pair
	for _, a := range s.Instances {
		for _, b := range s.Instances {
			if a.Name != b.Name && joined(a.Network, b.Network) {
				pairs = append(pairs, Pair{a, b})
			}
		}
	}
	return pairs
}

// On returns the instances of a host.
func (s *Spec) On(host string) []Instance {
	var on []Instance
	for _, i := range s.Instances {
		if i.Host == host {
			on = append(on, i)
		}
	}
	return on
}

// Moved returns the specification with an instance on another hypervisor.
func (s *Spec) Moved(instance, host string) *Spec {
	moved := *s
	moved.Instances = slices.Clone(s.Instances)
	for n, i := range moved.Instances {
		if i.Name == instance {
			moved.Instances[n].Host = host
		}
	}
	return &moved
}

// LocalVLANs returns the VLAN by which a host knows each network that it needs: those of its
// instances first, counted from 1 as they come, then those that a router joins to them. They
// mean nothing outside of that host.
func (s *Spec) LocalVLANs(host string) map[string]uint16 {
	vlans := make(map[string]uint16)
	add := func(network string) {
		if vlans[network] == 0 {
			vlans[network] = uint16(len(vlans) + 1)
		}
	}
	on := s.On(host)
	for _, i := range on {
		add(i.Network)
	}
	for _, n := range s.Networks {
		if slices.ContainsFunc(on, func(i Instance) bool { return s.Joined(i.Network, n.Name) }) {
			add(n.Name)
		}
	}
	return vlans
}

// TunnelName returns the name of a host's tunnel port to remote: the encapsulation and the
// remote VTEP in hexadecimal, as Neutron has it.
func TunnelName(encap string, remote Host) string {
	a := remote.VTEP.Addr().As4()
	return fmt.Sprintf("%s-%02x%02x%02x%02x", encap, a[0], a[1], a[2], a[3])
}

// UplinkMAC returns the MAC of the host's VTEP. It differs from the uplink's own, or the
// kernel, too, would take what Open vSwitch takes there, and answer it a second time.
func (h Host) UplinkMAC() MAC {
	d := digest("uplink", h.Name)
	return MAC{0x02, d[0], d[1], d[2], d[3], d[4]}
}

// PortID returns the UUID of the instance's port (the interface's external_ids:iface-id).
func (i Instance) PortID() string { return uuid("port", i.Name) }

// VMID returns the UUID of the instance itself (external_ids:vm-uuid).
func (i Instance) VMID() string { return uuid("instance", i.Name) }

// Tap returns the name of the instance's port on br-int: tap and eleven characters of the
// port's UUID, as Neutron has it, which fills the 15 that Linux allows.
func (i Instance) Tap() string { return "tap" + i.PortID()[:11] }

// Cookie returns the cookie of all flows that the controller has on a bridge of a host: no
// meaning, as with Neutron, but the same each time.
func Cookie(host, bridge string) uint64 {
	return binary.BigEndian.Uint64(digest("cookie", host, bridge))
}

// RouterMAC returns the MAC that a host's routed frames bear between hosts, so that the
// gateway's own never crosses the overlay and no switch learns it twice. Its first bytes are
// Neutron's default dvr_base_mac.
func RouterMAC(host string) MAC {
	d := digest("router", host)
	return MAC{0xfa, 0x16, 0x3f, d[0], d[1], d[2]}
}

func uuid(kind, name string) string {
	d := digest(kind, name)
	d[6] = d[6]&0x0f | 0x80 // version 8: custom (RFC 9562, section 5.8)
	d[8] = d[8]&0x3f | 0x80 // variant: RFC 9562, section 4.1
	return fmt.Sprintf("%x-%x-%x-%x-%x", d[0:4], d[4:6], d[6:8], d[8:10], d[10:16])
}

func digest(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		b.WriteString(p)
		b.WriteByte(0)
	}
	sum := sha256.Sum256(b.Bytes())
	return sum[:]
}

// Inventory returns the specification as the file from which Dyetrace's controller takes what
// instances there are, in YAML. It tells of no VTEP and no encapsulation. What has several
// addresses has a list of them, the link-local one last.
func (s *Spec) Inventory() ([]byte, error) {
	type network struct {
		Name         string   `yaml:"name"`
		CIDR         Prefixes `yaml:"cidr"`
		Gateway      *Gateway `yaml:"gateway,omitempty"`
		Router       string   `yaml:"router,omitempty"`
		Segmentation uint32   `yaml:"segmentation_id"`
	}
	type instance struct {
		Name    string `yaml:"name"`
		Network string `yaml:"network"`
		MAC     MAC    `yaml:"mac"`
		IP      any    `yaml:"ip"`
		Host    string `yaml:"host"`
	}
	var file struct {
		Networks  []network  `yaml:"networks"`
		Instances []instance `yaml:"instances"`
	}
	for _, n := range s.Networks {
		file.Networks = append(file.Networks, network{n.Name, n.CIDR, n.Gateway, n.Router, n.Segmentation})
	}
	for _, i := range s.Instances {
		ips := append(i.Addresses(V4), i.Addresses(V6)...)
		file.Instances = append(file.Instances, instance{i.Name, i.Network, i.MAC, oneOrList(ips), i.Host})
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		return nil, fmt.Errorf("overlay: inventory: %w", err)
	}
	return text, nil
}
