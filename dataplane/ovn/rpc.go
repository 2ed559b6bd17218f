package ovn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// maxAnswer bounds what is read of the database's answers to one question, in bytes. A row of UUIDs
// alone takes 60, so it is room for 250,000 logical flows of one priority.
const maxAnswer = 16 << 20

// Remote says where the southbound database is, as ovn-controller knows it.
type Remote struct {
	// Address is ovn-remote: "tcp:ADDRESS:PORT", "ssl:ADDRESS:PORT" or "unix:PATH", or several of
	// them, separated by commas, of which any will do.
	Address string
	// Key, Cert and CA are files for ssl; empty where none are configured.
	Key, Cert, CA string
}

// conn is a connection for one question.
type conn struct {
	net.Conn
	in *json.Decoder
	id int
}

// dial connects to the first of the addresses that answers.
func (r Remote) dial(ctx context.Context) (*conn, error) {
	var errs []error
	for address := range strings.SplitSeq(r.Address, ",") {
		c, err := r.dialOne(ctx, strings.TrimSpace(address))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", address, err))
			continue
		}
		if deadline, ok := ctx.Deadline(); ok {
			c.SetDeadline(deadline)
		}
		return &conn{Conn: c, in: json.NewDecoder(io.LimitReader(c, maxAnswer))}, nil
	}
	return nil, errors.Join(errs...)
}

func (r Remote) dialOne(ctx context.Context, address string) (net.Conn, error) {
	scheme, rest, _ := strings.Cut(address, ":")
	switch scheme {
	case "tcp":
		return new(net.Dialer).DialContext(ctx, "tcp", rest)
	case "unix":
		return new(net.Dialer).DialContext(ctx, "unix", rest)
	case "ssl":
		config, err := r.tls()
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", rest)
	}
	return nil, errors.New("want tcp:ADDRESS:PORT, ssl:ADDRESS:PORT or unix:PATH")
}

// tls is what Open vSwitch's own clients do: the peer's certificate must be of the authority, whatever
// name it has (ovs-pki(8), stream-ssl.c).
func (r Remote) tls() (*tls.Config, error) {
	if r.Key == "" || r.Cert == "" || r.CA == "" {
		return nil, errors.New("no key, certificate and authority in the SSL table of Open vSwitch's database")
	}
	cert, err := tls.LoadX509KeyPair(r.Cert, r.Key)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(r.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate", r.CA)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12, // of Open vSwitch 3.1
		Certificates:       []tls.Certificate{cert},
		InsecureSkipVerify: true, // of the name; the chain is verified below
		VerifyConnection: func(s tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			for _, c := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(opts)
			return err
		},
	}, nil
}

// row is one row of an answer; values are as RFC 7047, section 5.1, has them.
type row map[string]any

// selectRows asks for rows of several tables in one transaction.
func (c *conn) selectRows(ops ...operation) ([][]row, error) {
	c.id++
	params := []any{"OVN_Southbound"}
	for _, op := range ops {
		op.Op = "select"
		params = append(params, op)
	}
	if err := json.NewEncoder(c).Encode(map[string]any{"method": "transact", "params": params, "id": c.id}); err != nil {
		return nil, err
	}
	for {
		var m struct {
			Method string
			ID     any
			Params json.RawMessage
			Error  any
			Result []struct {
				Rows  []row
				Error string
			}
		}
		if err := c.in.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("the answer ended early, or is longer than %d bytes", maxAnswer)
			}
			return nil, err
		}
		switch {
		case m.Method == "echo":
			if err := json.NewEncoder(c).Encode(map[string]any{"result": m.Params, "error": nil, "id": m.ID}); err != nil {
				return nil, err
			}
			continue
		case m.Method != "" || m.ID != float64(c.id):
			continue
		case m.Error != nil:
			return nil, fmt.Errorf("%v", m.Error)
		case len(m.Result) < len(ops):
			return nil, fmt.Errorf("%d results of %d", len(m.Result), len(ops))
		}
		answers := make([][]row, len(ops))
		for i := range ops {
			if m.Result[i].Error != "" {
				return nil, fmt.Errorf("%s: %s", ops[i].Table, m.Result[i].Error)
			}
			answers[i] = m.Result[i].Rows
		}
		return answers, nil
	}
}

// operation is a select (RFC 7047, section 5.2.2).
type operation struct {
	Op      string   `json:"op"`
	Table   string   `json:"table"`
	Where   []any    `json:"where"`
	Columns []string `json:"columns,omitempty"`
}

func query(table string, columns ...string) operation {
	return operation{Table: table, Where: []any{}, Columns: columns}
}

// with adds the condition that a column has a value.
func (o operation) with(column string, value any) operation {
	o.Where = append(o.Where[:len(o.Where):len(o.Where)], []any{column, "==", value})
	return o
}

// uuid is a value that refers to a row.
func uuid(id string) any { return []string{"uuid", id} }

// none is an optional value that is not there.
func none() any { return []any{"set", []any{}} }

// id returns a row's UUID, or that of the row which an optional column refers to.
func (r row) id(column string) string {
	if pair, ok := r[column].([]any); ok && len(pair) == 2 && pair[0] == "uuid" {
		text, _ := pair[1].(string)
		return text
	}
	return ""
}

func (r row) text(column string) string {
	text, _ := r[column].(string)
	return text
}

// texts returns the strings of a column that may have several: one alone is not in a set.
func (r row) texts(column string) (all []string) {
	values := []any{r[column]}
	if set, ok := r[column].([]any); ok && len(set) == 2 && set[0] == "set" {
		values, _ = set[1].([]any)
	}
	for _, v := range values {
		if text, ok := v.(string); ok {
			all = append(all, text)
		}
	}
	return all
}

func (r row) number(column string) int {
	n, _ := r[column].(float64)
	return int(n)
}

// entry returns the value of a key in a map of strings.
func (r row) entry(column, key string) string {
	outer, ok := r[column].([]any)
	if !ok || len(outer) != 2 || outer[0] != "map" {
		return ""
	}
	pairs, _ := outer[1].([]any)
	for _, p := range pairs {
		if kv, ok := p.([]any); ok && len(kv) == 2 && kv[0] == key {
			text, _ := kv[1].(string)
			return text
		}
	}
	return ""
}
