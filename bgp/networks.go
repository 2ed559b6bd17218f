package bgp

import (
	"fmt"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
)

// Network is a network that the inventory has, by its VNI or its name, and whose routes belong to it: by
// route targets, by route distinguishers, or both.
type Network struct {
	// VNI, 1 to 16777215: the segmentation_id of the network. 0: that of the network called Name.
	VNI int64 `koanf:"vni"`
	// Name is that of the inventory's network, whose segmentation_id is the VNI. Empty: VNI says.
	Name string `koanf:"name"`
	// RTs are route targets such as 64512:100. A route that has one of them is in this VNI, whatever
	// its label says.
	RTs []string `koanf:"rts"`
	// RDs are route distinguishers such as 10.0.0.1:100. A route that has one of them is in this VNI,
	// and in those of its route targets.
	RDs []string `koanf:"rds"`
}

// Mapping returns the VNI of each route target and route distinguisher that a valid configuration has.
// vni is asked for those of networks by name; 0: there is none, so that nothing belongs to it.
func (c Config) Mapping(vni func(name string) uint32) rib.Networks {
	all := rib.Networks{Targets: map[wire.RouteTarget]uint32{}, RDs: map[wire.RD]uint32{}}
	for _, n := range c.Networks {
		id := uint32(n.VNI)
		if n.Name != "" {
			id = vni(n.Name)
		}
		if id == 0 {
			continue
		}
		for _, s := range n.RTs {
			rts, _ := parseRT(s)
			for _, rt := range rts {
				all.Targets[rt] = id
			}
		}
		for _, s := range n.RDs {
			rds, _ := parseRD(s)
			for _, rd := range rds {
				all.RDs[rd] = id
			}
		}
	}
	return all
}

func validateNetworks(networks []Network) []error {
	v := networksCheck{vnis: map[int64]int{}, names: map[string]int{}, targets: map[wire.RouteTarget]string{}, rds: map[wire.RD]string{}}
	for i, n := range networks {
		v.network(i, n)
	}
	return v.errs
}

// networksCheck is what networks say, and where.
type networksCheck struct {
	errs    []error
	vnis    map[int64]int
	names   map[string]int
	targets map[wire.RouteTarget]string
	rds     map[wire.RD]string
}

func (v *networksCheck) bad(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf("bgp.networks"+format, args...))
}

func (v *networksCheck) network(i int, n Network) {
	switch {
	case n.Name != "" && n.VNI != 0:
		v.bad("[%d].vni: %d beside name %q (want one of both)", i, n.VNI, n.Name)
	case n.Name != "":
		if first, twice := v.names[n.Name]; twice {
			v.bad("[%d].name: %s is that of bgp.networks[%d] (want each network once)", i, n.Name, first)
			break
		}
		v.names[n.Name] = i
	case n.VNI < 1 || n.VNI > maxVNI:
		v.bad("[%d].vni: %d (want a number from 1 to %d, or the name of a network in the inventory)", i, n.VNI, maxVNI)
	default:
		if first, twice := v.vnis[n.VNI]; twice {
			v.bad("[%d].vni: %d is that of bgp.networks[%d] (want each VNI once)", i, n.VNI, first)
			break
		}
		v.vnis[n.VNI] = i
	}
	if len(n.RTs)+len(n.RDs) == 0 {
		v.bad("[%d].rts: empty, and so is rds (want a list of route targets, or of route distinguishers)", i)
	}
	each(v, v.targets, n.RTs, "route target", fmt.Sprintf("[%d].rts", i), parseRT)
	each(v, v.rds, n.RDs, "route distinguisher", fmt.Sprintf("[%d].rds", i), parseRD)
}

// each notes which key has which value, of those that list has in words.
func each[T comparable](v *networksCheck, seen map[T]string, list []string, what, key string, parse func(string) ([]T, error)) {
	for j, s := range list {
		key := fmt.Sprintf("%s[%d]", key, j)
		all, err := parse(s)
		if err != nil {
			v.bad("%s: %q: %v (want a %s such as 64512:100, 4200000000:100 or 10.0.0.1:100)", key, s, err, what)
			continue
		}
		if first, twice := seen[all[0]]; twice {
			v.bad("%s: %s is bgp.networks%s (want each %s once)", key, s, first, what)
		}
		for _, x := range all {
			seen[x] = key
		}
	}
}

// parseRD returns the route distinguishers that are written so (RFC 4364, section 4.2).
func parseRD(s string) ([]wire.RD, error) {
	rts, err := parseRT(s)
	var rds []wire.RD
	for _, rt := range rts {
		rds = append(rds, wire.RD(rt>>56)<<48|wire.RD(rt&(1<<48-1)))
	}
	return rds, err
}
