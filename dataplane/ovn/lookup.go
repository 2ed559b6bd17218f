package ovn

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Flow is an OpenFlow flow, as far as it must be known to find what it was made from.
type Flow struct {
	Cookie   uint32
	Table    uint8
	Priority uint16
	// Datapath is the tunnel key of the datapath that the flow matches (metadata); 0 where it does not.
	Datapath uint32
	// Before are the flows that the packet met before, in order.
	Before []Flow
}

// Origin is the row that a flow was made from.
type Origin struct {
	// Table is "Logical_Flow", or "Port_Binding" and the like, of which nothing but the UUID is known.
	Table, UUID string
	// Datapath is the name of the logical switch or router, or its tunnel key where it has none.
	// Where one logical flow is for several datapaths, it is the one of the OpenFlow flow.
	Datapath string
	// Stage is such as "ls_in_acl"; Pipeline is "ingress" or "egress", Number the stage's in it.
	Stage, Pipeline string
	Number          int
	Priority        int
	// Match is that of the access control list, where the row carries out what the list has decided in a stage before.
	Match, Actions string
	// Source is where northd made it, such as "northd.c:6475".
	Source string
	// ACL is of a logical flow that was made from an access control list.
	ACL *ACL
}

// ACL is an access control list, as far as the southbound database knows it.
type ACL struct {
	// Hint is the beginning of its UUID in the northbound database; empty where it is not known.
	Hint string
	// Name is known of those that are logged.
	Name string
	// Direction is "from-lport" or "to-lport".
	Direction string
}

// ErrNone says that no row of the database is the one that was looked for. Of a flow: no row has its cookie, so it is not
// OVN's, or its row is gone.
var ErrNone = errors.New("no such row")

// otherTables are those of which rows become flows besides logical ones (ovn-controller, physical.c).
var otherTables = []string{"Port_Binding", "Datapath_Binding", "Multicast_Group", "Chassis", "MAC_Binding", "Load_Balancer"}

// Origin finds the row that a flow was made from. The error wraps ErrNone if there is none; any other
// says that the database could not be asked.
func (r Remote) Origin(ctx context.Context, f Flow) (Origin, error) {
	o, err := r.origin(ctx, f)
	if err != nil {
		return Origin{}, fmt.Errorf("southbound database: %w", err)
	}
	return o, nil
}

func (r Remote) origin(ctx context.Context, f Flow) (Origin, error) {
	c, err := r.dial(ctx)
	if err != nil {
		return Origin{}, err
	}
	defer c.Close()
	datapath, name, err := c.datapath(f.Datapath)
	if err != nil {
		return Origin{}, err
	}
	flows := query("Logical_Flow", "_uuid").with("priority", f.Priority)
	id, _, err := c.find(f.Cookie, flows.of(datapath))
	if err != nil {
		return Origin{}, err
	}
	if id != "" {
		o, err := c.logicalFlow(id, name)
		if err != nil || datapath == "" {
			return o, err
		}
		return c.decided(o, f, datapath)
	}
	var queries []operation
	for _, table := range otherTables {
		queries = append(queries, query(table, "_uuid"))
	}
	id, table, err := c.find(f.Cookie, queries)
	if err == nil && id == "" {
		err = ErrNone
	}
	return Origin{Table: table, UUID: id, Datapath: name}, err
}

// of restricts a query of logical flows to those of a datapath, if it is known. Shared by several datapaths, a flow names a
// group instead of one.
func (o operation) of(datapath string) []operation {
	if datapath == "" {
		return []operation{o}
	}
	return []operation{o.with("logical_datapath", uuid(datapath)), o.with("logical_datapath", none())}
}

// From OVN 23.06 on, an access control list does not drop: in a stage of evaluation it sets a bit, and a flow of a stage
// that follows, the same for all lists, drops what has it. Between the two may be a stage of samples.
const mostBetween = 2

// carriedOut matches the match of such a flow.
var carriedOut = regexp.MustCompile(`^(reg\d+\[\d+\]) == 1$`)

// decided returns the origin with the access control list that had a flow drop the packet, if it is one that carries out
// what a list has decided: of the flows that the packet met before, the last of the stage of evaluation.
func (c *conn) decided(o Origin, f Flow, datapath string) (Origin, error) {
	bit := carriedOut.FindStringSubmatch(o.Match)
	stage, ok := strings.CutSuffix(o.Stage, "_action")
	if !ok || bit == nil || o.ACL == nil {
		return o, nil
	}
	for _, b := range slices.Backward(f.Before) {
		back := int(f.Table) - int(b.Table)
		if b.Datapath != f.Datapath || back < 1 || back > 1+mostBetween || back > o.Number {
			continue
		}
		flows := query("Logical_Flow", "_uuid").with("priority", b.Priority).with("pipeline", o.Pipeline).with("table_id", o.Number-back)
		id, _, err := c.find(b.Cookie, flows.of(datapath))
		if err != nil {
			return Origin{}, err
		}
		if id == "" {
			continue
		}
		eval, err := c.logicalFlow(id, o.Datapath)
		switch {
		case errors.Is(err, ErrNone):
		case err != nil:
			return Origin{}, err
		case eval.Stage == stage+"_eval":
			if strings.Contains(eval.Actions, bit[1]+" = 1;") {
				o.Match, o.ACL = eval.Match, eval.ACL
			}
			return o, nil
		}
	}
	return o, nil
}

// datapath returns the UUID and the name of the datapath with a tunnel key; empty if there is none.
func (c *conn) datapath(key uint32) (id, name string, err error) {
	if key == 0 {
		return "", "", nil
	}
	answers, err := c.selectRows(query("Datapath_Binding", "_uuid", "external_ids").with("tunnel_key", key))
	if err != nil || len(answers[0]) == 0 {
		return "", "", err
	}
	name = answers[0][0].entry("external_ids", "name")
	if name == "" {
		name = fmt.Sprint(key)
	}
	return answers[0][0].id("_uuid"), name, nil
}

// find returns the row whose UUID begins with the cookie; empty if none does.
func (c *conn) find(cookie uint32, queries []operation) (id, table string, err error) {
	answers, err := c.selectRows(queries...)
	if err != nil {
		return "", "", err
	}
	prefix := fmt.Sprintf("%08x-", cookie)
	for i, rows := range answers {
		for _, row := range rows {
			if id := row.id("_uuid"); strings.HasPrefix(id, prefix) {
				return id, queries[i].Table, nil
			}
		}
	}
	return "", "", nil
}

func (c *conn) logicalFlow(id, datapath string) (Origin, error) {
	answers, err := c.selectRows(query("Logical_Flow").with("_uuid", uuid(id)))
	if err != nil {
		return Origin{}, err
	}
	if len(answers[0]) == 0 {
		return Origin{}, ErrNone // it went meanwhile
	}
	row := answers[0][0]
	o := Origin{
		Table: "Logical_Flow", UUID: id, Datapath: datapath,
		Stage: row.entry("external_ids", "stage-name"), Source: row.entry("external_ids", "source"),
		Pipeline: row.text("pipeline"), Number: row.number("table_id"), Priority: row.number("priority"),
		Match: row.text("match"), Actions: row.text("actions"),
	}
	o.ACL = acl(o, row.entry("external_ids", "stage-hint"))
	return o, nil
}

// logName is the name that an ACL's logging has (ovn-sb(5), Logical_Flow: actions, log).
var logName = regexp.MustCompile(`\blog\([^)]*name="([^"]*)"`)

// acl tells an ACL's doing from other logical flows: by the stage, all of whose own flows have no hint.
func acl(o Origin, hint string) *ACL {
	a := &ACL{Hint: hint}
	switch {
	case strings.HasPrefix(o.Stage, "ls_in_acl") && !strings.HasPrefix(o.Stage, "ls_in_acl_hint"):
		a.Direction = "from-lport"
	case strings.HasPrefix(o.Stage, "ls_out_acl") && !strings.HasPrefix(o.Stage, "ls_out_acl_hint"):
		a.Direction = "to-lport"
	default:
		return nil
	}
	if m := logName.FindStringSubmatch(o.Actions); m != nil {
		a.Name = m[1]
	}
	return a
}

// PortKey returns the tunnel key of the logical port that has a MAC, in the datapath with a tunnel key. Of several it is
// the one that is among local, the logical ports of the host. The error wraps ErrNone where there is none, or none that
// stands out; any other says that the database could not be asked.
func (r Remote) PortKey(ctx context.Context, datapath uint32, mac string, local []string) (uint32, error) {
	key, err := r.portKey(ctx, datapath, mac, local)
	if err != nil {
		return 0, fmt.Errorf("southbound database: logical port of %s in datapath %d: %w", mac, datapath, err)
	}
	return key, nil
}

func (r Remote) portKey(ctx context.Context, datapath uint32, mac string, local []string) (uint32, error) {
	c, err := r.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	id, _, err := c.datapath(datapath)
	if err != nil {
		return 0, err
	}
	if id == "" {
		return 0, ErrNone
	}
	ports := query("Port_Binding", "logical_port", "tunnel_key", "mac").with("datapath", uuid(id))
	answers, err := c.selectRows(ports)
	if err != nil {
		return 0, err
	}
	var all, here []uint32
	for _, row := range answers[0] {
		if !row.hasMAC(mac) {
			continue
		}
		key := uint32(row.number("tunnel_key"))
		all = append(all, key)
		if slices.Contains(local, row.text("logical_port")) {
			here = append(here, key)
		}
	}
	for _, keys := range [][]uint32{here, all} {
		if len(keys) == 1 {
			return keys[0], nil
		}
	}
	return 0, fmt.Errorf("%d have it: %w", len(all), ErrNone)
}

// hasMAC says whether a Port_Binding has a MAC, with addresses or without (ovn-sb(5), mac).
func (r row) hasMAC(mac string) bool {
	for _, text := range r.texts("mac") {
		if have, _, _ := strings.Cut(text, " "); strings.EqualFold(have, mac) {
			return true
		}
	}
	return false
}
