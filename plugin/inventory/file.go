package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/dyetrace/dyetrace/stain"
)

// Network is one tenant network: a layer-2 domain, whose addresses mean nothing outside it
// and the networks that share its router.
type Network struct {
	Name string
	// CIDR is the IPv4 prefix, host bits zero.
	CIDR netip.Prefix
	// GatewayIP and GatewayMAC are the router's in this network; zero where there is none.
	GatewayIP  netip.Addr
	GatewayMAC stain.MAC
	// Router joins all networks that name it; empty where the network is isolated.
	Router string
	// SegmentationID is the tunnel key (VNI, GRE key), 24 bits; 0 where not told.
	SegmentationID uint32
}

// Instance is a VM, container or bare-metal host under test.
type Instance struct {
	Name    string
	Network string
	MAC     stain.MAC
	IP      netip.Addr
	// Host it runs on; empty where its port, found by any agent, is to tell.
	Host string
	// Port is the name of its port on the host's bridge; empty where iface-id or MAC tell.
	Port string
	// Source is the file that named it.
	Source string
}

// Ref returns NETWORK/NAME, which names the instance without doubt.
func (i Instance) Ref() string { return i.Network + "/" + i.Name }

// File is what one or more inventory files say, checked.
type File struct {
	// Paths the file was read from.
	Paths []string
	// Networks and Instances are in the order of the files.
	Networks  []Network
	Instances []Instance
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
