package verdict

import (
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// CauseKind is of what sort a cause is: what programs and tests hold on to, as the words are for
// people. The numbers are the contract's.
type CauseKind uint8

// Of the network, and of what is attached to it.
const (
	// CauseFlow: a switch's flows drop it.
	CauseFlow CauseKind = iota + 1
	// CauseMisdirected: they send it to another port than the one where it should go.
	CauseMisdirected
	// CauseSwitch: lost on a host, and flows do not tell by what.
	CauseSwitch
	// CausePort: a port is not on its bridge, an instance's or one that joins bridges.
	CausePort
	// CauseSecurityRule: denied.
	CauseSecurityRule
	// CauseStaleVTEP: it went, or was answered from, where the instance is not.
	CauseStaleVTEP
	// CauseTunnel: a tunnel leads to nobody, has no route to the other end, or that does not know it.
	CauseTunnel
	// CauseVNI: the ends of a tunnel do not agree on the network's key.
	CauseVNI
	// CauseBetweenHosts: lost in the underlay, or at an end of the tunnel.
	CauseBetweenHosts
	// CauseUnderlay: the underlay does not deliver; CauseUnderlayMember: one of several ways
	// through it does not; CausePathMTU: not what is large.
	CauseUnderlay
	CauseUnderlayMember
	CausePathMTU
	// CauseEntrypoint: the underlay delivers, the receiving end of the tunnel does not take it.
	CauseEntrypoint
	// CauseLoss: some are lost, some pass.
	CauseLoss
	CauseLoop
	// CauseDuplicate: copied on the way.
	CauseDuplicate
	// CauseGuestSilent: delivered, not answered; CauseGuestDown: off, or its interface is.
	CauseGuestSilent
	CauseGuestDown
	// CauseImpostor: somebody else answers for the address.
	CauseImpostor
)

// Ours: why it is not known.
const (
	// CauseAgent: not connected all the time, or did not tell what would have decided.
	CauseAgent CauseKind = iota + 40
	// CauseHook: not there all the time, or not at all.
	CauseHook
	// CauseSamples: we lost some.
	CauseSamples
	// CauseInjection: it was not injected, or its own hook did not see it.
	CauseInjection
	// CauseUnseen: no sampling point could tell.
	CauseUnseen
	// CauseUnexplained: what the flows do with it could not be found out.
	CauseUnexplained
	// CauseInventory: where the instance is, is not known, or told in two ways.
	CauseInventory
	// CauseConntrack: connection tracking may remember an earlier probe.
	CauseConntrack
)

// String is the kind as the JSON of the command line has it, such as "stale-vtep"; empty for none.
func (k CauseKind) String() string {
	if k == 0 {
		return ""
	}
	name := strings.TrimPrefix(dyetracev1.CauseKind(k).String(), "CAUSE_KIND_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// doubt is why something proves nothing; the zero value is that it does.
type doubt struct {
	kind CauseKind
	why  string
}

func (d doubt) none() bool { return d == doubt{} }

// because is the doubt in brackets.
func (d doubt) because() string { return because(d.why) }

// firstDoubt returns the first that is one.
func firstDoubt(ds ...doubt) doubt {
	for _, d := range ds {
		if !d.none() {
			return d
		}
	}
	return doubt{}
}

// words are the reasons of doubts.
func words(ds []doubt) []string {
	texts := make([]string, len(ds))
	for i, d := range ds {
		texts[i] = d.why
	}
	return texts
}

// obstacle is the sort of what keeps a pair from being probed.
func obstacle(b *plan.Blocked) CauseKind {
	switch b.By {
	case plan.ByPort:
		return CausePort
	case plan.ByAgent:
		return CauseAgent
	case plan.ByHook:
		return CauseHook
	case plan.ByDelivery:
		return CauseUnseen
	}
	return CauseInventory
}
