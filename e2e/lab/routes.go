package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// routesWait bounds the wait for routes to be what they should be. Measured: 2 s after lab up,
// which are FRR's first sessions; 0.1 s after a move.
var routesWait = Patience(30 * time.Second)

// routesEvery is how long to wait before FRR is asked again; it takes 30 ms to answer.
const routesEvery = 50 * time.Millisecond

// place is what a type-2 route tells of: a MAC alone, or with an address.
type place struct {
	mac string
	ip  netip.Addr
}

// awaitRoutes returns when every reflector, and the kernel of every switch, knows each instance
// where told has it, and nowhere else. Where nobody tells of instances that is at once.
func (l *Lab) awaitRoutes(ctx context.Context, told *overlay.Spec) error {
	if told.EVPN == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, routesWait, errors.New("it does not converge"))
	defer cancel()
	var last error
	for {
		err := l.checkRoutes(ctx, told)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err // else a command that was cut short
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("routes: %w; last seen: %w", context.Cause(ctx), last)
		case <-time.After(routesEvery):
		}
	}
}

func (l *Lab) checkRoutes(ctx context.Context, told *overlay.Spec) error {
	want := placesOf(told)
	for _, r := range told.EVPN.Reflectors {
		got, err := l.routesOf(ctx, r.Name)
		if err != nil {
			return err
		}
		for p, ends := range want {
			if !slices.Equal(got[p], ends) {
				return fmt.Errorf("%s: %s %s: at %v, want %v", r.Name, p.mac, p.ip, got[p], ends)
			}
		}
	}
	for _, sw := range told.Switches {
		if err := l.checkKernel(ctx, told, sw, want); err != nil {
			return err
		}
	}
	return nil
}

// placesOf returns the tunnel ends where instances are told to be.
func placesOf(told *overlay.Spec) map[place][]netip.Addr {
	places := make(map[place][]netip.Addr)
	for _, i := range told.Instances {
		n, _ := told.Network(i.Network)
		if n.Encap != overlay.VXLAN {
			continue
		}
		end, _ := told.End(i.Host)
		for _, ip := range append(i.IP.All(), netip.Addr{}) {
			places[place{i.MAC.String(), ip}] = []netip.Addr{end.VTEP.Addr()}
		}
	}
	return places
}

// routesOf returns the next hops of the valid type-2 routes that FRR has on a node, in order.
func (l *Lab) routesOf(ctx context.Context, node string) (map[place][]netip.Addr, error) {
	out, err := l.Exec(ctx, node, "vtysh", "-d", "bgpd", "-c", "show bgp l2vpn evpn route type macip json")
	if err != nil {
		return nil, err
	}
	routes, err := parseRoutes(out)
	if err != nil {
		return nil, fmt.Errorf("%s: vtysh: %w", node, err)
	}
	return routes, nil
}

// parseRoutes reads FRR's JSON: route distinguishers with routes with paths, counters between.
func parseRoutes(text []byte) (map[place][]netip.Addr, error) {
	var dump map[string]json.RawMessage
	if err := json.Unmarshal(text, &dump); err != nil {
		return nil, err
	}
	routes := make(map[place][]netip.Addr)
	for rd, raw := range dump {
		var byPrefix map[string]json.RawMessage
		if !strings.Contains(rd, ":") || json.Unmarshal(raw, &byPrefix) != nil {
			continue // a counter
		}
		for prefix, raw := range byPrefix {
			if !strings.HasPrefix(prefix, "[2]") {
				continue // "rd"
			}
			if err := addPaths(routes, raw); err != nil {
				return nil, fmt.Errorf("%s %s: %w", rd, prefix, err)
			}
		}
	}
	for p := range routes {
		slices.SortFunc(routes[p], netip.Addr.Compare)
		routes[p] = slices.Compact(routes[p])
	}
	return routes, nil
}

func addPaths(routes map[place][]netip.Addr, raw json.RawMessage) error {
	type path struct {
		Valid    bool
		MAC      string
		IP       netip.Addr
		Nexthops []struct{ IP netip.Addr }
	}
	var route struct{ Paths []json.RawMessage }
	if err := json.Unmarshal(raw, &route); err != nil {
		return err
	}
	for _, raw := range route.Paths {
		var paths []path
		if json.Unmarshal(raw, &paths) != nil { // one, or a list of them
			paths = make([]path, 1)
			if err := json.Unmarshal(raw, &paths[0]); err != nil {
				return err
			}
		}
		for _, p := range paths {
			for _, hop := range p.Nexthops {
				if at := (place{p.MAC, p.IP}); p.Valid {
					routes[at] = append(routes[at], hop.IP)
				}
			}
		}
	}
	return nil
}

// checkKernel compares what a switch forwards by with what is told.
func (l *Lab) checkKernel(ctx context.Context, told *overlay.Spec, sw overlay.Host, want map[place][]netip.Addr) error {
	for _, n := range toldNetworks(told, sw.Name) {
		device := fmt.Sprintf("vni%d", n.Segmentation)
		out, err := l.Exec(ctx, sw.Name, "bridge", "fdb", "show", "dev", device)
		if err != nil {
			return err
		}
		for _, i := range told.Instances {
			if i.Network != n.Name || i.Host == sw.Name {
				continue
			}
			for _, end := range want[place{mac: i.MAC.String()}] {
				if line := fmt.Sprintf("%s dst %s self", i.MAC, end); !strings.Contains(string(out), line) {
					return fmt.Errorf("%s: %s: has no %q", sw.Name, device, line)
				}
			}
		}
	}
	return nil
}
