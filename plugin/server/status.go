package server

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// maxHomeless bounds the instances that are listed as problems one by one.
const maxHomeless = 50

// hosts returns all hosts that have, had or should have an agent, by name.
func (s service) hosts() []*dyetracev1.Host {
	snap := s.Book.Snapshot()
	all := map[string]*dyetracev1.Host{}
	for _, name := range snap.ExpectedHosts() {
		all[name] = &dyetracev1.Host{Name: name, Expected: true}
	}
	for _, a := range s.Fleet.Agents() {
		h := all[a.Host]
		if h == nil {
			h = &dyetracev1.Host{Name: a.Host}
			all[a.Host] = h
		}
		h.Connected, h.Version, h.OvsVersion = a.Connected, a.Version, a.OVSVersion
		h.LastSeen, h.Counters = timestamppb.New(a.LastSeen), a.Counters
		if known, ok := snap.Host(a.Host); ok {
			describe(h, known)
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *dyetracev1.Host) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
}

// describe adds what a host's agent said of it. Of one that has just connected, and has said nothing yet,
// what it said in the session before is no word of now: its hooks may be gone since.
func describe(h *dyetracev1.Host, known inventory.Host) {
	if known.Connected || !h.GetConnected() {
		h.Bridges, h.Endpoints = known.Bridges, known.Endpoints
	}
}

// unready returns what keeps a host from being ready, a line each; nil if it is.
func unready(h *dyetracev1.Host) []string {
	switch {
	case !h.GetConnected() && h.GetLastSeen() == nil:
		return []string{h.GetName() + ": its agent has not connected"}
	case !h.GetConnected():
		return []string{fmt.Sprintf("%s: its agent is not connected, last seen %s", h.GetName(), h.GetLastSeen().AsTime().Format("2006-01-02 15:04:05 MST"))}
	case len(h.GetBridges()) == 0:
		return []string{h.GetName() + ": its agent reports no bridge that could be hooked"}
	}
	var why []string
	for _, b := range h.GetBridges() {
		word := "absent"
		switch b.GetState() {
		case dyetracev1.HookState_HOOK_STATE_LIVE:
			continue
		case dyetracev1.HookState_HOOK_STATE_REFUSED:
			word = "refused"
		}
		line := fmt.Sprintf("%s/%s: hook %s", h.GetName(), b.GetName(), word)
		if b.GetReason() != "" {
			line += ": " + b.GetReason()
		}
		why = append(why, line)
	}
	return why
}

// down says that a peer has no session, and why if that is known.
func down(p bgp.Status, now time.Time) string {
	line := fmt.Sprintf("BGP peer %s: %s for %v", p.Address, p.State, now.Sub(p.Since).Truncate(time.Second))
	if p.LastError != nil {
		line += ": " + p.LastError.Error()
	}
	return line
}

// homeless returns the instances that no port was found for. Those whose host has no agent are
// left out: the host is a problem already.
func homeless(snap *inventory.Snapshot) []string {
	var lines []string
	more := 0
	for _, in := range snap.Instances() {
		_, err := snap.Endpoint(in)
		switch {
		case err == nil || in.Host != "" && errors.Is(err, inventory.ErrNoAgent):
		case len(lines) == maxHomeless:
			more++
		default:
			lines = append(lines, err.Error())
		}
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more instances without a port", more))
	}
	return lines
}
