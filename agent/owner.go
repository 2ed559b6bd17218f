package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovn"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
)

const (
	// namesTimeout bounds what is waited for OVN's southbound database where the controller does not say for how long it
	// waits: an explanation stands without.
	namesTimeout = time.Second
	// parallelNames bounds the connections to that database at a time, of all that wait for one.
	parallelNames = 4
)

// namesBy is until when names are waited for: a fifth of the time that the controller waits is left for the way back.
func namesBy(req *dyetracev1.Explain, now time.Time) time.Time {
	if req.WithinMs == 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(req.WithinMs) * time.Millisecond * 4 / 5)
}

// own says whose the flow is that dropped a packet, and returns it if OVN may have a name for it.
func (a *Agent) own(ctx context.Context, ex *dyetracev1.Explanation, t ovs.Trace) *ovn.Flow {
	f := ex.Flow
	ovnHere := a.sw.Snapshot().Southbound.Address != ""
	owner, known := flows.OwnerByCookie(t.Flow.Flow, ovnHere)
	if !known { // else who waits for the cause need not wait for 100,000 flows
		all, err := a.sw.DumpFlows(ctx, f.Bridge)
		if err != nil {
			ex.Unnamed = err.Error()
			return nil
		}
		owner = flows.OwnerOf(t.Flow.Flow, all, ovnHere)
	}
	f.Owner = dyetracev1.FlowOwner(owner)
	if f.Owner != dyetracev1.FlowOwner_FLOW_OWNER_OVN || f.Cookie == 0 {
		return nil
	}
	drop := ovnFlow(t.Flow.Flow)
	for _, b := range t.Before {
		if b.Cookie>>32 == 0 { // OVN's have no more
			drop.Before = append(drop.Before, ovnFlow(b))
		}
	}
	return &drop
}

// ovnFlow is a flow as OVN's database is asked about it.
func ovnFlow(f flows.Flow) ovn.Flow {
	return ovn.Flow{Cookie: uint32(f.Cookie), Table: f.Table, Priority: f.Priority, Datapath: datapathOf(f.Match)}
}

// rowGone says why it is not known what OVN has a flow for that is of one of its datapaths, but of no row.
const rowGone = "OVN's southbound database has no row of it any more: ovn-controller here is behind, or does not run"

// name says what OVN has a flow for; false is that it should be OVN's, since it is of a logical datapath, and that the
// database has no row of it. No switch is held up by who waits for that until then.
func (a *Agent) name(ctx context.Context, ex *dyetracev1.Explanation, drop ovn.Flow, until time.Time) bool {
	f := ex.Flow
	var o ovn.Origin
	err := a.askOVN(ctx, until, func(ctx context.Context, r ovn.Remote) (err error) {
		o, err = r.Origin(ctx, drop)
		return err
	})
	switch {
	case errors.Is(err, ovn.ErrNone) && drop.Datapath != 0:
		return false
	case errors.Is(err, ovn.ErrNone):
		f.Owner = dyetracev1.FlowOwner_FLOW_OWNER_UNSPECIFIED
	case err != nil:
		ex.Unnamed = err.Error()
	case o.Stage != "":
		f.Stage = o.Stage
		f.LogicalFlow = &dyetracev1.LogicalFlow{
			Uuid: o.UUID, Datapath: o.Datapath, Pipeline: o.Pipeline, Table: uint32(o.Number), Priority: uint32(o.Priority),
			Match: o.Match, Actions: o.Actions, Source: o.Source,
		}
		if o.ACL != nil {
			f.Acl = &dyetracev1.AccessList{Hint: o.ACL.Hint, Name: o.ACL.Name, Direction: o.ACL.Direction}
		}
	}
	return true
}

// askOVN has the southbound database asked when its turn has come, and waited for until then; zero is namesTimeout.
func (a *Agent) askOVN(ctx context.Context, until time.Time, ask func(ctx context.Context, r ovn.Remote) error) error {
	if until.IsZero() {
		until = time.Now().Add(namesTimeout)
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	select {
	case a.names <- struct{}{}:
		defer func() { <-a.names }()
	case <-ctx.Done():
		return errors.New("OVN's southbound database answers others too slowly")
	}
	return ask(ctx, southbound(a.sw.Snapshot().Southbound))
}

// geneveOption is OVN's option of a packet, by the host's flows, or else by what OVN's southbound database has of its
// logical ports. Without it no trace tells what became of the packet: that is an error.
func (a *Agent) geneveOption(ctx context.Context, bridge string, t ovs.TraceRequest, until time.Time) (uint32, error) {
	done, err := a.turn(ctx)
	if err != nil {
		return 0, err
	}
	key, err := a.sw.GeneveOption(ctx, bridge, t)
	done()
	if !errors.Is(err, ovs.ErrNoKey) {
		return key, err
	}
	if t.TunID != 0 {
		asked := a.askOVN(ctx, until, func(ctx context.Context, r ovn.Remote) (err error) {
			key, err = r.PortKey(ctx, t.TunID, t.DstMAC.String(), a.logicalPorts(bridge))
			return err
		})
		if asked == nil {
			return key, nil
		}
		err = fmt.Errorf("%w; %w", err, asked)
	}
	return 0, fmt.Errorf("explain: what OVN does with it is not known: %w", err)
}

// logicalPorts are those that a bridge has interfaces for.
func (a *Agent) logicalPorts(bridge string) (names []string) {
	b, _ := a.sw.Snapshot().Bridge(bridge)
	for _, p := range b.Ports {
		if p.IfaceID != "" {
			names = append(names, p.IfaceID)
		}
	}
	return names
}

func southbound(s dataplane.Southbound) ovn.Remote {
	return ovn.Remote{Address: s.Address, Key: s.Key, Cert: s.Cert, CA: s.CA}
}

// datapathOf returns the key of the logical datapath that a flow of OVN's matches; 0 if it does not.
func datapathOf(match string) uint32 {
	for part := range strings.SplitSeq(match, ",") {
		if value, ok := strings.CutPrefix(part, "metadata="); ok {
			n, _ := strconv.ParseUint(value, 0, 32)
			return uint32(n)
		}
	}
	return 0
}

// logicalCommand returns what shows the packet's way through OVN's logical network, on its central
// node: the instance that sends it must be here, where its logical port is known, else empty.
func logicalCommand(snap dataplane.Snapshot, req *dyetracev1.Explain, asked ovs.TraceRequest, t ovs.Trace) string {
	b, ok := snap.Bridge(req.Bridge)
	port, found := b.ByOFPort(asked.InPort)
	if snap.Southbound.Address == "" || !ok || !found || port.IfaceID == "" {
		return ""
	}
	return asked.LogicalCommand(port.IfaceID, t)
}
