package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/dyetrace/dyetrace/dataplane"
)

// The columns that we read or write, of the tables that we look at
// (ovs-vswitchd.conf.db(5)). Interface's statistics are not among them: they
// change every five seconds for every port.
type (
	rootRow struct {
		UUID        string            `ovsdb:"_uuid"`
		ExternalIDs map[string]string `ovsdb:"external_ids"`
		OtherConfig map[string]string `ovsdb:"other_config"`
		Bridges     []string          `ovsdb:"bridges"`
		OVSVersion  *string           `ovsdb:"ovs_version"`
		NextConfig  int               `ovsdb:"next_cfg"`
		CurConfig   int               `ovsdb:"cur_cfg"`
	}
	sslRow struct {
		UUID string `ovsdb:"_uuid"`
		Key  string `ovsdb:"private_key"`
		Cert string `ovsdb:"certificate"`
		CA   string `ovsdb:"ca_cert"`
	}
	bridgeRow struct {
		UUID         string   `ovsdb:"_uuid"`
		Name         string   `ovsdb:"name"`
		DatapathType string   `ovsdb:"datapath_type"`
		Protocols    []string `ovsdb:"protocols"`
		Ports        []string `ovsdb:"ports"`
		Mirrors      []string `ovsdb:"mirrors"`
	}
	mirrorRow struct {
		UUID       string  `ovsdb:"_uuid"`
		Name       string  `ovsdb:"name"`
		OutputPort *string `ovsdb:"output_port"`
		OutputVLAN *int    `ovsdb:"output_vlan"`
	}
	portRow struct {
		UUID        string            `ovsdb:"_uuid"`
		Name        string            `ovsdb:"name"`
		Interfaces  []string          `ovsdb:"interfaces"`
		Tag         *int              `ovsdb:"tag"`
		ExternalIDs map[string]string `ovsdb:"external_ids"`
	}
	interfaceRow struct {
		UUID        string            `ovsdb:"_uuid"`
		Name        string            `ovsdb:"name"`
		Type        string            `ovsdb:"type"`
		Options     map[string]string `ovsdb:"options"`
		ExternalIDs map[string]string `ovsdb:"external_ids"`
		OFPort      *int              `ovsdb:"ofport"`
		LinkState   *string           `ovsdb:"link_state"`
		MTU         *int              `ovsdb:"mtu"`
		Error       *string           `ovsdb:"error"`
	}
)

// The owner's mark of a dye port, in external_ids of its Port and its Interface.
const (
	ownerKey   = "dyetrace"
	ownerValue = "dye"
)

// database is one connection to ovsdb-server, with a copy of the tables above.
//
// A connection is never renewed: when it is lost, a new one is made. (libovsdb can
// reconnect by itself, but nothing ends its attempts, not even Close, and it
// panics when its backoff gives up.)
type database struct {
	client client.Client
	// changed has a value when the copy changed; changes are coalesced.
	changed chan struct{}
	// alive is done when the connection is.
	alive context.Context
}

var errGone = errors.New("database: connection closed")

// dial connects to the database and returns once the copy is complete.
func dial(ctx context.Context, address string) (*database, error) {
	dbModel, err := model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		"Open_vSwitch": &rootRow{}, "Bridge": &bridgeRow{}, "Port": &portRow{}, "Interface": &interfaceRow{},
		"SSL": &sslRow{}, "Mirror": &mirrorRow{},
	})
	if err != nil {
		return nil, fmt.Errorf("database model: %w", err)
	}
	c, err := client.NewOVSDBClient(dbModel, client.WithEndpoint(address))
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", address, err)
	}
	if err := c.Connect(ctx); err != nil {
		return nil, fmt.Errorf("database: %w", err) // it names the address
	}
	alive, gone := context.WithCancel(context.Background())
	db := &database{client: c, changed: make(chan struct{}, 1), alive: alive}
	go func() {
		// The client tells whoever listens at that moment, and nobody else.
		<-c.DisconnectNotify()
		gone()
	}()
	c.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(string, model.Model) { db.poke() },
		UpdateFunc: func(string, model.Model, model.Model) { db.poke() },
		DeleteFunc: func(string, model.Model) { db.poke() },
	})
	if _, err := c.Monitor(ctx, columns(c)); err != nil {
		db.close()
		return nil, fmt.Errorf("database %s: monitor: %w", address, err)
	}
	return db, nil
}

// columns is what to watch: the columns above and no other. libovsdb's MonitorAll has
// the server send all columns of a table, and then drops an update whole if one of
// them is not in the row's type.
func columns(c client.Client) *client.Monitor {
	var (
		root   rootRow
		br     bridgeRow
		port   portRow
		iface  interfaceRow
		ssl    sslRow
		mirror mirrorRow
	)
	return c.NewMonitor(
		client.WithTable(&root, &root.ExternalIDs, &root.OtherConfig, &root.Bridges, &root.OVSVersion, &root.NextConfig, &root.CurConfig),
		client.WithTable(&br, &br.Name, &br.DatapathType, &br.Protocols, &br.Ports, &br.Mirrors),
		client.WithTable(&port, &port.Name, &port.Interfaces, &port.Tag, &port.ExternalIDs),
		client.WithTable(&iface, &iface.Name, &iface.Type, &iface.Options, &iface.ExternalIDs,
			&iface.OFPort, &iface.LinkState, &iface.MTU, &iface.Error),
		client.WithTable(&ssl, &ssl.Key, &ssl.Cert, &ssl.CA),
		client.WithTable(&mirror, &mirror.Name, &mirror.OutputPort, &mirror.OutputVLAN),
	)
}

func (db *database) poke() {
	select {
	case db.changed <- struct{}{}:
	default:
	}
}

// close ends the connection and waits until the client's goroutines have ended. (It
// does not wait for ever: a connection that was lost while dial was making it may
// have been told to nobody.)
func (db *database) close() {
	db.client.Close()
	select {
	case <-db.alive.Done():
	case <-time.After(time.Second):
	}
}

func (db *database) echo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dbTimeout)
	defer cancel()
	if err := db.client.Echo(ctx); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return nil
}

// tables are the rows of the copy, by UUID but for the root, of which there is one.
type tables struct {
	root       rootRow
	ssl        sslRow
	bridges    map[string]bridgeRow
	ports      map[string]portRow
	interfaces map[string]interfaceRow
	mirrors    map[string]mirrorRow
}

func (db *database) read(ctx context.Context) (tables, error) {
	// List waits until the copy is whole, and does not see that a connection which
	// was lost in the meantime will never make it so.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(db.alive, cancel)()
	var (
		t     tables
		roots []rootRow
		ssl   []sslRow
	)
	list, err := func() (rows struct {
		bridges    []bridgeRow
		ports      []portRow
		interfaces []interfaceRow
		mirrors    []mirrorRow
	}, err error) {
		err = errors.Join(db.client.List(ctx, &roots), db.client.List(ctx, &ssl), db.client.List(ctx, &rows.bridges),
			db.client.List(ctx, &rows.ports), db.client.List(ctx, &rows.interfaces), db.client.List(ctx, &rows.mirrors))
		return rows, err
	}()
	switch {
	case db.alive.Err() != nil:
		return t, errGone
	case err != nil:
		return t, fmt.Errorf("database: %w", err)
	case len(roots) != 1:
		return t, fmt.Errorf("database: %d rows in table Open_vSwitch, want 1: run ovs-vsctl init", len(roots))
	}
	t.root = roots[0]
	if len(ssl) > 0 { // one at most: ovs-vswitchd.conf.db(5)
		t.ssl = ssl[0]
	}
	t.bridges = byUUID(list.bridges, func(r bridgeRow) string { return r.UUID })
	t.ports = byUUID(list.ports, func(r portRow) string { return r.UUID })
	t.interfaces = byUUID(list.interfaces, func(r interfaceRow) string { return r.UUID })
	t.mirrors = byUUID(list.mirrors, func(r mirrorRow) string { return r.UUID })
	return t, nil
}

func byUUID[T any](rows []T, uuid func(T) string) map[string]T {
	m := make(map[string]T, len(rows))
	for _, r := range rows {
		m[uuid(r)] = r
	}
	return m
}

func (db *database) snapshot(ctx context.Context) (dataplane.Snapshot, error) {
	t, err := db.read(ctx)
	if err != nil {
		return dataplane.Snapshot{}, err
	}
	s := t.snapshot()
	fillSources(&s)
	return s, nil
}

// snapshot returns the rows as the rest of the program sees them, classified. A
// reference to a row that is not there (tables are copied one after the other) is
// left out: the notice that will bring it makes another snapshot.
func (t tables) snapshot() dataplane.Snapshot {
	s := dataplane.Snapshot{OVSVersion: deref(t.root.OVSVersion)}
	s.Waiting = t.root.OtherConfig["flow-restore-wait"] == "true"
	s.SweepEvery = sweepEvery(t.root.OtherConfig["max-revalidator"])
	s.Southbound.Address, s.Managed = t.root.ExternalIDs["ovn-remote"] // ovn-controller(8)
	s.Southbound.Key, s.Southbound.Cert, s.Southbound.CA = t.ssl.Key, t.ssl.Cert, t.ssl.CA
	for _, id := range t.root.Bridges {
		row, ok := t.bridges[id]
		if !ok {
			continue
		}
		b := dataplane.Bridge{Name: row.Name, DatapathType: cmp.Or(row.DatapathType, "system"), Protocols: row.Protocols}
		slices.Sort(b.Protocols)
		for _, id := range row.Ports {
			port := t.ports[id]
			for _, id := range port.Interfaces {
				if i, ok := t.interfaces[id]; ok {
					b.Ports = append(b.Ports, i.port())
				}
			}
		}
		slices.SortFunc(b.Ports, func(a, b dataplane.Port) int { return strings.Compare(a.Name, b.Name) })
		b.Mirrors = t.mirrorsOf(row)
		s.Bridges = append(s.Bridges, b)
	}
	slices.SortFunc(s.Bridges, func(a, b dataplane.Bridge) int { return strings.Compare(a.Name, b.Name) })
	dataplane.Classify(&s)
	return s
}

// mirrorsOf returns the mirrors of a bridge as ovs-vswitchd takes them (mirror_configure of
// vswitchd/bridge.c): an output port goes before a VLAN, and must be the bridge's.
func (t tables) mirrorsOf(row bridgeRow) []dataplane.Mirror {
	var mirrors []dataplane.Mirror
	for _, id := range row.Mirrors {
		r, ok := t.mirrors[id]
		if !ok {
			continue
		}
		m := dataplane.Mirror{Name: r.Name}
		switch {
		case r.OutputPort != nil:
			if !slices.Contains(row.Ports, *r.OutputPort) {
				continue
			}
			for _, id := range t.ports[*r.OutputPort].Interfaces {
				if i, ok := t.interfaces[id]; ok {
					m.Ports = append(m.Ports, i.Name)
				}
			}
			slices.Sort(m.Ports)
		case r.OutputVLAN != nil:
			m.VLAN = *r.OutputVLAN
		default:
			continue
		}
		mirrors = append(mirrors, m)
	}
	slices.SortFunc(mirrors, func(a, b dataplane.Mirror) int { return strings.Compare(a.Name, b.Name) })
	return mirrors
}

func (r interfaceRow) port() dataplane.Port {
	p := dataplane.Port{
		Name: r.Name, ID: r.UUID, Type: r.Type, Error: deref(r.Error),
		Peer:     r.Options["peer"],
		RemoteIP: r.Options["remote_ip"], LocalIP: r.Options["local_ip"],
		MAC:       cmp.Or(r.ExternalIDs["attached-mac"], r.ExternalIDs["attached_mac"]), // the latter is OVN-Kubernetes's
		IfaceID:   r.ExternalIDs["iface-id"],
		LinkState: deref(r.LinkState), MTU: deref(r.MTU),
		ToS: r.Options["tos"], Fragments: r.Options["df_default"] == "false",
		Dye: r.ExternalIDs[ownerKey] == ownerValue,
	}
	// -1 is a port that could not be opened, and 65535 is OFPP_NONE.
	if n := deref(r.OFPort); n > 0 && n < 65535 {
		p.OFPort = uint16(n)
	}
	return p
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// transact runs operations as one transaction, and raises next_cfg with it: the
// returned number is what cur_cfg will have reached once ovs-vswitchd acted on it.
func (db *database) transact(ctx context.Context, root rootRow, ops []ovsdb.Operation) (config int, err error) {
	bump, err := db.client.Where(&root).Mutate(&root, model.Mutation{
		Field: &root.NextConfig, Mutator: ovsdb.MutateOperationAdd, Value: 1,
	})
	if err != nil {
		return 0, err
	}
	ops = append(ops, bump...)
	// In one transaction with the above, so it is our number and nobody else's.
	ops = append(ops, ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: "Open_vSwitch",
		Where: []ovsdb.Condition{}, Columns: []string{"next_cfg"},
	})
	results, err := db.client.Transact(ctx, ops...)
	if err != nil {
		return 0, err
	}
	if _, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		return 0, err
	}
	rows := results[len(ops)-1].Rows
	if len(rows) != 1 {
		return 0, fmt.Errorf("%d rows with next_cfg, want 1", len(rows))
	}
	n, ok := rows[0]["next_cfg"].(float64)
	if !ok {
		return 0, fmt.Errorf("next_cfg %v: want a number", rows[0]["next_cfg"])
	}
	return int(n), nil
}

// await returns when done says so of the copy, which is looked at again whenever it
// changes.
func (db *database) await(ctx context.Context, done func(tables) (bool, error)) error {
	for {
		t, err := db.read(ctx)
		if err != nil {
			return err
		}
		if ok, err := done(t); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-db.alive.Done():
			return errGone
		case <-db.changed:
		case <-time.After(time.Second): // in case a row came between two tables' reading
		}
	}
}
