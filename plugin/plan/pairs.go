package plan

import (
	"errors"
	"fmt"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// ErrNoPath says that no router joins the networks of a pair, or not in an IP version in which
// both ends have addresses, so that there is nothing to check between them.
var ErrNoPath = errors.New("no path between them")

// Kind says what a scope is about.
type Kind uint8

// Kinds of scope.
const (
	// All is every ordered pair that has a path.
	All Kind = iota + 1
	// OnePair is Scope.Src to Scope.Dst.
	OnePair
	// OfNetwork is every ordered pair with an end in Scope.Network.
	OfNetwork
	// OfHost is every ordered pair with an end on Scope.Host.
	OfHost
)

// Scope says which pairs to check.
type Scope struct {
	Kind Kind
	// Src and Dst are instances as inventory.Snapshot.Resolve reads them.
	Src, Dst string
	Network  string
	Host     string
}

// ScopeFromProto reads a request's scope. The error names the field.
func ScopeFromProto(m *dyetracev1.Scope) (Scope, error) {
	switch s := m.GetScope().(type) {
	case *dyetracev1.Scope_All:
		if !s.All {
			return Scope{}, errors.New("scope.all: false (want true, or another scope)")
		}
		return Scope{Kind: All}, nil
	case *dyetracev1.Scope_Pair:
		return Scope{Kind: OnePair, Src: s.Pair.GetSrc(), Dst: s.Pair.GetDst()}, nil
	case *dyetracev1.Scope_Network:
		return Scope{Kind: OfNetwork, Network: s.Network}, nil
	case *dyetracev1.Scope_Host:
		return Scope{Kind: OfHost, Host: s.Host}, nil
	}
	return Scope{}, errors.New("scope: none given (want all, pair, network or host)")
}

// Pair is an ordered pair of instances.
type Pair struct {
	Src, Dst inventory.Instance
}

func (p Pair) String() string { return p.Src.Ref() + " → " + p.Dst.Ref() }

// Pairs returns the pairs of a scope, by source, then by destination, in the inventory's
// order; never none without an error. Pairs that cannot be probed over the IP version asked for,
// or over any, are left out of a scope of many, and refused where they are all there is. The error
// names the field, and wraps inventory.ErrUnknown, inventory.ErrAmbiguous or ErrNoPath where it
// is one of those.
func Pairs(snap *inventory.Snapshot, scope Scope, opts Options) ([]Pair, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	switch scope.Kind {
	case OnePair:
		return onePair(snap, scope, opts.Version)
	case All:
		return pairs(snap, func(inventory.Instance) bool { return true }, opts.Version, "scope.all: the inventory")
	case OfNetwork:
		if _, ok := snap.Network(scope.Network); !ok {
			return nil, fmt.Errorf("scope.network: %q: %w", scope.Network, inventory.ErrUnknown)
		}
		in := func(i inventory.Instance) bool { return i.Network == scope.Network }
		return pairs(snap, in, opts.Version, fmt.Sprintf("scope.network: network %s", scope.Network))
	case OfHost:
		in, err := onHost(snap, scope.Host)
		if err != nil {
			return nil, err
		}
		return pairs(snap, in, opts.Version, fmt.Sprintf("scope.host: host %s", scope.Host))
	}
	return nil, errors.New("scope: none given (want all, pair, network or host)")
}

func onePair(snap *inventory.Snapshot, scope Scope, v inventory.IPVersion) ([]Pair, error) {
	src, err := snap.Resolve(scope.Src)
	if err != nil {
		return nil, fmt.Errorf("scope.pair.src: %w", err)
	}
	dst, err := snap.Resolve(scope.Dst)
	if err != nil {
		return nil, fmt.Errorf("scope.pair.dst: %w", err)
	}
	if src.Ref() == dst.Ref() {
		return nil, fmt.Errorf("scope.pair.dst: %s is the source itself (want another instance)", dst.Ref())
	}
	p := Pair{src, dst}
	if !Joined(snap, src.Network, dst.Network) {
		return nil, fmt.Errorf("scope.pair: %s: %w: %s", p, ErrNoPath, apart(snap, src.Network, dst.Network))
	}
	from, _ := snap.Network(src.Network)
	to, _ := snap.Network(dst.Network)
	if _, _, ok := addresses(p, from, to, v); ok {
		return []Pair{p}, nil
	}
	end, err := refuse(p, from, to, v)
	if end == "" {
		return nil, fmt.Errorf("scope.pair: %s: %w", p, err)
	}
	return nil, fmt.Errorf("scope.pair%s: %w", end, err)
}

func apart(snap *inventory.Snapshot, a, b string) string {
	na, _ := snap.Network(a)
	nb, _ := snap.Network(b)
	switch {
	case na.Router == "":
		return fmt.Sprintf("network %s has no router", a)
	case nb.Router == "":
		return fmt.Sprintf("network %s has no router", b)
	}
	return fmt.Sprintf("network %s is on router %s, %s on %s", a, na.Router, b, nb.Router)
}

// Joined says whether instances of two networks should reach each other: the network is the
// same, or one router joins both.
func Joined(snap *inventory.Snapshot, a, b string) bool {
	if a == b {
		return true
	}
	na, okA := snap.Network(a)
	nb, okB := snap.Network(b)
	return okA && okB && na.Router != "" && na.Router == nb.Router
}

// onHost returns who is on a host: those that the files put there, and those without a host
// in the files whose port is there.
func onHost(snap *inventory.Snapshot, host string) (func(inventory.Instance) bool, error) {
	in := func(i inventory.Instance) bool {
		if i.Host != "" {
			return i.Host == host
		}
		ep, err := snap.Endpoint(i)
		return err == nil && ep.Host == host
	}
	if _, ok := snap.Host(host); ok {
		return in, nil
	}
	for _, name := range snap.ExpectedHosts() {
		if name == host {
			return in, nil
		}
	}
	return nil, fmt.Errorf("scope.host: %q: %w", host, inventory.ErrUnknown)
}

// pairs returns the pairs that have an end in the set. An instance meets only those of
// networks that are joined with its own, so tenants cost nothing to each other.
func pairs(snap *inventory.Snapshot, in func(inventory.Instance) bool, v inventory.IPVersion, what string) ([]Pair, error) {
	all := snap.Instances()
	member, reaches := make([]bool, len(all)), make([]reach, len(all))
	domains := map[string][]int{} // by router, or by network where it has none
	for i, inst := range all {
		n, _ := snap.Network(inst.Network)
		member[i], reaches[i] = in(inst), reachOf(inst, n, v)
		domains[domain(n)] = append(domains[domain(n)], i)
	}
	var out []Pair
	apart := false
	for i, src := range all {
		n, _ := snap.Network(src.Network)
		for _, j := range domains[domain(n)] {
			switch {
			case i == j || !member[i] && !member[j]:
			case reaches[i].meets(reaches[j]):
				out = append(out, Pair{src, all[j]})
			default:
				apart = true
			}
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case apart && v == inventory.AnyIP:
		return nil, fmt.Errorf("%s has no two instances that should reach each other and have addresses of one IP version: %w", what, ErrNoPath)
	case apart:
		return nil, fmt.Errorf("%s has no two instances that should reach each other over %s (ip_version %d): %w", what, v, uint8(v), ErrNoPath)
	}
	return nil, fmt.Errorf("%s has no two instances that should reach each other: %w", what, ErrNoPath)
}

// Count returns how many pairs the scope All has over either IP version, without making them:
// instances of one reach all meet the same.
func Count(snap *inventory.Snapshot) int {
	domains := map[string]map[reach]int{}
	for _, in := range snap.Instances() {
		n, _ := snap.Network(in.Network)
		d := domain(n)
		if domains[d] == nil {
			domains[d] = map[reach]int{}
		}
		domains[d][reachOf(in, n, inventory.AnyIP)]++
	}
	total := 0
	for _, alike := range domains {
		for a, n := range alike {
			for b, m := range alike {
				switch {
				case a == b && a.meets(a):
					total += n * (n - 1)
				case a != b && a.meets(b):
					total += n * m
				}
			}
		}
	}
	return total
}

func domain(n inventory.Network) string {
	if n.Router != "" {
		return "router/" + n.Router // no name has a slash
	}
	return n.Name
}
