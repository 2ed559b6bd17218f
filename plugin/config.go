package plugin

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/stain"
)

// Config is a controller's configuration; reference.yml explains every key.
type Config struct {
	Listen    string        `koanf:"listen"`
	Socket    string        `koanf:"socket"`
	TLS       pki.Files     `koanf:"tls"`
	Store     string        `koanf:"store"`
	Inventory []string      `koanf:"inventory"`
	Metrics   string        `koanf:"metrics"`
	Stain     StainConfig   `koanf:"stain"`
	Heartbeat time.Duration `koanf:"heartbeat"`
	Run       RunConfig     `koanf:"run"`
	// BGP is nil where no routes are learned.
	BGP *bgp.Config `koanf:"bgp"`

	// Path is the file that the configuration was read from, to read peers again; empty: none.
	Path string `koanf:"-"`
	// Version of the program, to be told to agents and users. No key: whoever builds it knows.
	Version string `koanf:"-"`
}

// StainConfig chooses the stain.
type StainConfig struct {
	TOS  int `koanf:"tos"`
	Port int `koanf:"port"`
}

// RunConfig is what runs have in common.
type RunConfig struct {
	Timeout          time.Duration `koanf:"timeout"`
	Settle           time.Duration `koanf:"settle"`
	Patience         time.Duration `koanf:"patience"`
	AnswerTimeout    time.Duration `koanf:"answer_timeout"`
	PerInstanceRate  float64       `koanf:"per_instance_rate"`
	PerInstanceBurst int           `koanf:"per_instance_burst"`
	UnderlayRate     int           `koanf:"underlay_rate"`
	MaxActive        int           `koanf:"max_active"`
	MaxPairs         int           `koanf:"max_pairs"`
}

// keys is every key that a file may have, with what is right for it.
var keys = map[string]string{
	"listen":                 "HOST:PORT, such as 172.20.20.10:7443",
	"socket":                 "the path of a unix socket",
	"tls.ca":                 "the path of a PEM file",
	"tls.cert":               "the path of a PEM file",
	"tls.key":                "the path of a PEM file",
	"store":                  "the path of a file",
	"inventory":              "a list of paths of files",
	"metrics":                "HOST:PORT, such as 127.0.0.1:9464",
	"stain.tos":              "a number, such as 0x5c",
	"stain.port":             "a number from 1 to 65535",
	"heartbeat":              "a time such as 1s",
	"run.timeout":            "a time such as 30s",
	"run.settle":             "a time such as 250ms",
	"run.answer_timeout":     "a time such as 5s",
	"run.patience":           "a time such as 750ms",
	"run.per_instance_rate":  "probes per second, such as 20",
	"run.per_instance_burst": "a number of probes, such as 20",
	"run.underlay_rate":      "datagrams per second, such as 2000, or 0 for none",
	"run.max_active":         "a number of runs, such as 64",
	"run.max_pairs":          "a number of pairs, such as 100000",
	"bgp.router_id":          "an IPv4 address of this host, such as 10.0.0.9",
	"bgp.as":                 "a number from 1 to 4294967295",
	"bgp.listen":             "HOST:PORT, such as :179",
	"bgp.peers":              "a list of peers",
	"bgp.networks":           "a list of networks with their route targets",
}

// networkKeys is every key that one of bgp.networks may have, with what is right for it.
var networkKeys = map[string]string{
	"vni":  "a number from 1 to 16777215",
	"name": "the name of a network in the inventory",
	"rts":  `a list of route targets in quotes, such as "64512:100"`,
	"rds":  `a list of route distinguishers in quotes, such as "10.0.0.1:100"`,
}

// peerKeys is every key that one of bgp.peers may have, with what is right for it.
var peerKeys = map[string]string{
	"address":       "the IP address of a speaker, such as 10.0.0.1",
	"port":          "a number from 1 to 65535",
	"as":            "a number from 1 to 4294967295",
	"local_as":      "a number from 1 to 4294967295",
	"source":        "an address of this host, in quotes if it is IPv6",
	"passive":       "true or false",
	"md5":           "a string, in quotes if it looks like a number",
	"gtsm":          "a number of hops, such as 1",
	"hold_time":     "a time such as 90s",
	"families":      "a list of evpn, vpnv4 and vpnv6",
	"rts":           `a list of route targets in quotes, such as "64512:100"`,
	"max_routes":    "a number of routes, such as 2000000",
	"next_hops":     "a list of prefixes, addresses, or known",
	"encapsulation": "vxlan or mpls",
}

// Bounds of configured values, each with its reason.
const (
	// Three missed heartbeats are a lost agent: below 100 ms a garbage collection would do,
	// above a minute a run would wait for one that is long gone.
	minHeartbeat, maxHeartbeat = 100 * time.Millisecond, time.Minute
	// A path takes 0.5 ms (measured), an agent batches for some more; after 10 s a packet of
	// ours is not under way any more (RFC 791 bounds a TTL of 64 by 64 s, in theory).
	minSettle, maxSettle = 5 * time.Millisecond, 10 * time.Second
	// An audit of a bridge with 50,000 flows takes a second. An agent gives itself ten for any answer.
	minAnswer, maxAnswer = 100 * time.Millisecond, 10 * time.Second
	minTimeout           = 100 * time.Millisecond
	maxTimeout           = 24 * time.Hour
	// What one agent can send is a few hundred thousand a second.
	maxRate = 1e6
	// A stream of one datagram a second finds nothing within minutes, so less than some tens a second are of no
	// use to a host with some neighbours; an agent answers 10,000 a second.
	minUnderlayRate, maxUnderlayRate = 20, 10_000
	// Agents take 256 runs at a time.
	maxActive = 256
	// A pair of ten points takes some 3 kB while its run is under way.
	maxPairs = 10_000_000
)

// DefaultConfig returns the values of keys that a file leaves out.
func DefaultConfig() Config {
	s := stain.Default()
	return Config{
		Listen: ":7443",
		Store:  "/var/lib/dyetrace/dyetrace.db",
		Stain:  StainConfig{TOS: int(s.TOS), Port: int(s.Port)},
		// Three missed ones are noticed within a run's patience.
		Heartbeat: time.Second,
		Run: RunConfig{
			Timeout: 30 * time.Second, Settle: 250 * time.Millisecond,
			// Twice what a geostationary satellite takes each way, and then some: and a hard fault of
			// which nothing tells but silence is still named within a second.
			Patience: 750 * time.Millisecond,
			// An agent that takes longer is not well, and must not hold up a run for long.
			AnswerTimeout:   5 * time.Second,
			PerInstanceRate: 20, PerInstanceBurst: 20,
			// Ten neighbours by 200 a second each, of which a host sends to five, and as much for suspicion.
			// 2 Mbit/s.
			UnderlayRate: 2000,
			MaxActive:    64, MaxPairs: 100_000,
		},
	}
}

// LoadConfig reads a YAML file over the defaults. Unknown keys, wrong types and values out of
// range are refused; the error names the file and every bad key, and says what would be right.
func LoadConfig(path string) (Config, error) {
	cfg, err := load(path)
	if err == nil {
		err = cfg.Validate()
	}
	cfg.Path = path
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

func load(path string) (Config, error) {
	cfg := DefaultConfig()
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return Config{}, err
	}
	if err := checkKeys(k); err != nil {
		return Config{}, err
	}
	// One key at a time, so that an error can say which, and what would be right.
	var errs []error
	for _, key := range k.Keys() {
		if key == "bgp.peers" || key == "bgp.networks" {
			continue
		}
		one := koanf.New(".")
		if err := one.Set(key, k.Get(key)); err != nil {
			return Config{}, fmt.Errorf("%s: %w", key, err)
		}
		err := one.UnmarshalWithConf("", &cfg, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
			ErrorUnused: true, Result: &cfg, TagName: "koanf", DecodeHook: decode,
		}})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %v (want %s)", key, k.Get(key), keys[key]))
		}
	}
	if (k.Exists("bgp.peers") || k.Exists("bgp.networks")) && cfg.BGP == nil {
		cfg.BGP = new(bgp.Config)
	}
	if cfg.BGP != nil {
		var peers, networks []error
		cfg.BGP.Peers, peers = readList[bgp.Peer]("bgp.peers", "address, as and others", peerKeys, k.Get("bgp.peers"))
		cfg.BGP.Networks, networks = readList[bgp.Network]("bgp.networks", "vni or name, and rts or rds", networkKeys, k.Get("bgp.networks"))
		errs = append(append(errs, peers...), networks...)
	}
	return cfg, errors.Join(errs...)
}

// readList reads a list of groups of keys, key by key as well. What is no such list is not shown in
// the errors: there may be secrets in it.
func readList[T any](name, want string, known map[string]string, v any) (all []T, bad []error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		return nil, []error{fmt.Errorf("%s: a %s (want %s)", name, reflect.TypeOf(v).Kind(), keys[name])}
	}
	for i, v := range list {
		var one T
		m, ok := v.(map[string]any)
		if !ok {
			bad = append(bad, fmt.Errorf("%s[%d]: no keys (want %s)", name, i, want))
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if err := readListKey(&one, known, key, m[key]); err != nil {
				bad = append(bad, fmt.Errorf("%s[%d].%s: %w", name, i, key, err))
			}
		}
		all = append(all, one)
	}
	return all, bad
}

func readListKey(to any, known map[string]string, key string, v any) error {
	want, ok := known[key]
	if !ok {
		return fmt.Errorf("unknown key (want one of %s)", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{ErrorUnused: true, Result: to, TagName: "koanf", DecodeHook: decode})
	if err != nil {
		return err
	}
	switch err := d.Decode(map[string]any{key: v}); {
	case err != nil && key == "md5":
		return fmt.Errorf("no string (want %s)", want)
	case err != nil:
		return fmt.Errorf("%v (want %s)", v, want)
	}
	return nil
}

// decode reads "250ms" as a time, and refuses what mapstructure would bend: a bare number for a
// time, of which nobody knows the unit, and a fraction for a number of things.
var decode = mapstructure.ComposeDecodeHookFunc(
	mapstructure.StringToTimeDurationHookFunc(),
	func(_, to reflect.Type, v any) (any, error) {
		switch v := v.(type) {
		case int, float64:
			if to == reflect.TypeFor[time.Duration]() {
				return nil, errors.New("no unit")
			}
			if f, ok := v.(float64); ok && (to.Kind() == reflect.Int || to.Kind() == reflect.Int64) && f != math.Trunc(f) {
				return nil, errors.New("a fraction")
			}
		}
		return v, nil
	},
)

// checkKeys refuses keys that are not known, and values where a group of keys should be.
func checkKeys(k *koanf.Koanf) error {
	var errs []error
	for _, key := range k.Keys() {
		if _, known := keys[key]; !known {
			errs = append(errs, fmt.Errorf("%s: unknown key (want one of %s)", key, strings.Join(near(key), ", ")))
		}
	}
	return errors.Join(errs...)
}

// near returns the keys of the group that a key is in; those of the top level, groups among them,
// if there is no such group.
func near(key string) []string {
	group, _, _ := strings.Cut(key, ".")
	var same, top []string
	for known := range keys {
		g, _, nested := strings.Cut(known, ".")
		if top = append(top, g); nested && g == group {
			same = append(same, known)
		}
	}
	if len(same) == 0 {
		same = top
	}
	slices.Sort(same)
	return slices.Compact(same)
}

// Validate checks every value; the error joins one line per bad key.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Listen == "" && c.Socket == "" {
		bad("listen: empty, and no socket either (want %s)", keys["listen"])
	}
	for _, x := range []struct{ key, addr string }{{"listen", c.Listen}, {"metrics", c.Metrics}} {
		if why := badAddress(x.addr); x.addr != "" && why != "" {
			bad("%s: %q: %s (want %s)", x.key, x.addr, why, keys[x.key])
		}
	}
	// sun_path of unix(7) has 108 bytes, the last of which is 0.
	if len(c.Socket) > 107 {
		bad("socket: %d bytes (want a path of at most 107)", len(c.Socket))
	}
	for _, x := range []struct{ key, path string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}} {
		if x.path == "" {
			bad("%s: missing (want %s; there is no unauthenticated mode, and `dyetrace pki` makes certificates)", x.key, keys[x.key])
		}
	}
	if c.Store == "" || strings.HasSuffix(c.Store, "/") {
		bad("store: %q (want %s)", c.Store, keys["store"])
	}
	for i, path := range c.Inventory {
		switch {
		case path == "":
			bad("inventory[%d]: empty (want the path of a file)", i)
		case slices.Contains(c.Inventory[:i], path):
			bad("inventory[%d]: %s is there already (want each file once)", i, path)
		}
	}
	if c.Stain.TOS < 0 || c.Stain.TOS > 255 || c.Stain.Port < 0 || c.Stain.Port > 65535 {
		bad("stain: tos %d, port %d (want tos 4 to 252 and port 1 to 65535)", c.Stain.TOS, c.Stain.Port)
	} else if err := c.stain().Validate(); err != nil {
		bad("%w", err)
	}
	if c.Heartbeat < minHeartbeat || c.Heartbeat > maxHeartbeat {
		bad("heartbeat: %v (want %v to %v)", c.Heartbeat, minHeartbeat, maxHeartbeat)
	}
	errs = append(errs, c.Run.validate()...)
	if c.BGP != nil {
		errs = append(errs, c.BGP.Validate())
	}
	return errors.Join(errs...)
}

func (c RunConfig) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Timeout < minTimeout || c.Timeout > maxTimeout {
		bad("run.timeout: %v (want %v to %v)", c.Timeout, minTimeout, maxTimeout)
	}
	if c.Settle < minSettle || c.Settle > maxSettle {
		bad("run.settle: %v (want %v to %v)", c.Settle, minSettle, maxSettle)
	}
	if c.Patience < 0 || c.Patience > maxSettle {
		bad("run.patience: %v (want 0s to %v; what is less than run.settle is that)", c.Patience, maxSettle)
	}
	if c.AnswerTimeout < minAnswer || c.AnswerTimeout > maxAnswer {
		bad("run.answer_timeout: %v (want %v to %v)", c.AnswerTimeout, minAnswer, maxAnswer)
	}
	if !(c.PerInstanceRate > 0 && c.PerInstanceRate <= maxRate) { // NaN is neither
		bad("run.per_instance_rate: %g (want more than 0, at most %g probes per second)", c.PerInstanceRate, float64(maxRate))
	}
	if c.PerInstanceBurst < 1 || c.PerInstanceBurst > maxRate {
		bad("run.per_instance_burst: %d (want 1 to %g probes)", c.PerInstanceBurst, float64(maxRate))
	}
	if c.UnderlayRate != 0 && (c.UnderlayRate < minUnderlayRate || c.UnderlayRate > maxUnderlayRate) {
		bad("run.underlay_rate: %d (want %d to %d datagrams per second, or 0 for none)", c.UnderlayRate, minUnderlayRate, maxUnderlayRate)
	}
	if c.MaxActive < 1 || c.MaxActive > maxActive {
		bad("run.max_active: %d (want 1 to %d runs)", c.MaxActive, maxActive)
	}
	if c.MaxPairs < 1 || c.MaxPairs > maxPairs {
		bad("run.max_pairs: %d (want 1 to %d pairs)", c.MaxPairs, maxPairs)
	}
	return errs
}

// badAddress says why something is no address to listen on; empty if it is one.
func badAddress(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "no HOST:PORT"
	}
	switch n, err := strconv.ParseUint(port, 10, 16); {
	case err != nil:
		return fmt.Sprintf("port %q is no number from 1 to 65535", port)
	case n == 0:
		return "port 0, which agents could not know"
	}
	return ""
}

func (c Config) stain() stain.Stain {
	return stain.Stain{TOS: uint8(c.Stain.TOS), Port: uint16(c.Stain.Port)}
}
