package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/dyetrace/dyetrace/stain"
)

// Network is one tenant network: a layer-2 domain, whose addresses mean nothing outside it
// and the networks that share its router.
type Network struct {
	Name string
	// CIDRs are the prefixes, of IPv4, IPv6 or both, host bits zero, none within another; one
	// at least, IPv4 before IPv6. Link-local IPv6 addresses need none.
	CIDRs []netip.Prefix
	// GatewayIPs and GatewayMAC are the router's in this network; none and zero where there is
	// none. At most one address is IPv4, one IPv6 and one link-local IPv6, in that order.
	GatewayIPs []netip.Addr
	GatewayMAC stain.MAC
	// Router joins all networks that name it; empty where the network is isolated.
	Router string
	// SegmentationID is the tunnel key (VNI, GRE key), 24 bits; 0 where not told.
	SegmentationID uint32
}

// Routes says whether the network's gateway has an address of a version (AnyIP: of either), so
// that instances can send through it. In IPv6 a link-local one is enough: that is what routers
// advertise (RFC 4861, section 4.2).
func (n Network) Routes(v IPVersion) bool { return slices.ContainsFunc(n.GatewayIPs, v.Is) }

// IPVersion is 4 or 6, or 0 where it does not matter; the numbers are the contract's.
type IPVersion uint8

// Versions of IP.
const (
	AnyIP IPVersion = 0
	IPv4  IPVersion = 4
	IPv6  IPVersion = 6
)

func (v IPVersion) String() string {
	switch v {
	case AnyIP:
		return "IP"
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return fmt.Sprintf("IPVersion(%d)", uint8(v))
}

// Is says whether an address is of that version.
func (v IPVersion) Is(a netip.Addr) bool {
	switch v {
	case AnyIP:
		return a.IsValid()
	case IPv4:
		return a.Is4()
	case IPv6:
		return a.Is6()
	}
	return false
}

// LinkLocal says whether an address is link-local IPv6 (fe80::/10; RFC 4291, section 2.5.6): one
// of every link, in no prefix of the network, and never routed. In IPv4, 169.254.0.0/16 is an
// address like others here.
func LinkLocal(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// Instance is a VM, container or bare-metal host under test. Which one it is, Ref tells; with
// its list of addresses it is no value for ==.
type Instance struct {
	Name    string
	Network string
	MAC     stain.MAC
	// IPs are its addresses, one at least, IPv4 before IPv6, else as in the file. The slice is
	// shared and must not be changed.
	IPs []netip.Addr
	// Host it runs on; empty where its port, found by any agent, is to tell.
	Host string
	// Port is the name of its port on the host's bridge; empty where iface-id or MAC tell.
	Port string
	// Source is the file that named it.
	Source string
}

// Ref returns NETWORK/NAME, which names the instance without doubt.
func (i Instance) Ref() string { return i.Network + "/" + i.Name }

// Addr returns the address by which the instance is best known in a version: the first IPv4
// address; the first IPv6 address that is not link-local, else the first that is, which serves
// within its network only. AnyIP is IPv4 where there is one. It is the zero Addr where there is none.
func (i Instance) Addr(v IPVersion) netip.Addr {
	var link netip.Addr
	for _, a := range i.IPs {
		switch {
		case !v.Is(a):
		case !LinkLocal(a):
			return a
		case !link.IsValid():
			link = a
		}
	}
	return link
}

// File is what one or more inventory files say, checked.
type File struct {
	// Paths the file was read from.
	Paths []string
	// Networks and Instances are in the order of the files.
	Networks  []Network
	Instances []Instance
	// Racks are those of the hosts that have one, by name of host.
	Racks map[string]string
}

// Problem is one thing wrong in a file; Load joins all that it finds.
type Problem struct {
	// File is the path as given to Load, Line counts from 1.
	File string
	Line int
	// Field is the path of the value, such as instances[3].mac; empty for the whole file.
	Field string
	// Reason says what is there and what would be right.
	Reason string
}

func (p *Problem) Error() string {
	if p.Field == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Reason)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Field, p.Reason)
}

// Load reads inventory files as if they were one: an instance in one file may be of a network
// in another. reference.yml explains every key. The error joins a [Problem] for everything
// that is wrong in any of the files, or is that of reading one.
func Load(paths ...string) (File, error) {
	if len(paths) == 0 {
		return File{}, errors.New("inventory: no file given")
	}
	docs := make([]document, len(paths))
	for i, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return File{}, fmt.Errorf("inventory: %w", err)
		}
		docs[i] = document{path, data}
	}
	return parse(docs)
}

// Parse is Load for one file already read; path is for messages.
func Parse(path string, data []byte) (File, error) {
	return parse([]document{{path, data}})
}
