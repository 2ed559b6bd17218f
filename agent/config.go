package agent

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/go-viper/mapstructure/v2"

	"github.com/dyetrace/dyetrace/pki"
)

// Config is an agent's configuration; reference.yml explains every key.
type Config struct {
	Host       string        `koanf:"host"`
	Controller string        `koanf:"controller"`
	ServerName string        `koanf:"server_name"`
	TLS        pki.Files     `koanf:"tls"`
	Bridges    []string      `koanf:"bridges"`
	OVSDB      string        `koanf:"ovsdb"`
	OVSRunDir  string        `koanf:"ovs_rundir"`
	Lease      time.Duration `koanf:"lease"`
	Rate       int           `koanf:"rate"`
	SampleRate int           `koanf:"sample_rate"`
	Metrics    string        `koanf:"metrics"`

	UnderlayPort int `koanf:"underlay_port"`
	UnderlayRate int `koanf:"underlay_rate"`
}

// Bounds of configured values, each with its reason.
const (
	// OpenFlow's hard_timeout has 16 bits of whole seconds; renewals come at a
	// third of the lease, and below 10 s one slow ovs-ofctl could lose the hook.
	minLease = 10 * time.Second
	maxLease = 65535 * time.Second
	// What one dye port can carry is measured by `make bench`; a cap beyond it
	// caps nothing.
	maxRate = 1_000_000
)

// DefaultUnderlayPort is where agents answer each other in UDP: the number that hosts reach the
// controller by in TCP, so that firewalls have one to know; and below net.ipv4.ip_local_port_range
// (32768 up), so that no other program is given it for a connection of its own.
const DefaultUnderlayPort = 7443

// DefaultConfig returns the values of keys that a file leaves out.
func DefaultConfig() Config {
	host, _ := os.Hostname() // an empty host is refused by Validate, by name
	return Config{
		Host:       host,
		ServerName: "controller",
		OVSDB:      "unix:/run/openvswitch/db.sock",
		OVSRunDir:  "/run/openvswitch",
		Lease:      60 * time.Second,
		Rate:       20_000,
		SampleRate: 100_000,

		UnderlayPort: DefaultUnderlayPort,
		UnderlayRate: 10_000, // the most that a controller's run.underlay_rate may be
	}
}

// LoadConfig reads a YAML file over the defaults. Unknown keys, wrong types and
// values out of range are refused; the error names the file and the key.
func LoadConfig(path string) (Config, error) {
	cfg := DefaultConfig()
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return Config{}, fmt.Errorf("agent configuration %s: %w", path, err)
	}
	err := k.UnmarshalWithConf("", &cfg, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		ErrorUnused:      true,
		WeaklyTypedInput: false,
		Result:           &cfg,
		TagName:          "koanf",
		DecodeHook:       mapstructure.StringToTimeDurationHookFunc(),
	}})
	if err != nil {
		return Config{}, fmt.Errorf("agent configuration %s: %w", path, err)
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("agent configuration %s: %w", path, err)
	}
	return cfg, nil
}

// Validate checks every value; the error joins one line per bad key.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Host == "" || strings.ContainsAny(c.Host, " /\t\n") {
		bad("host: %q is not a host's name (want the name in the agent's certificate, such as hv1)", c.Host)
	}
	u, err := url.Parse(c.Controller)
	switch {
	case c.Controller == "":
		bad("controller: missing (want an address such as https://controller.example:7443)")
	case err != nil:
		bad("controller: %w", err)
	case u.Scheme != "https" || u.Host == "" || u.Port() == "" || u.Port() == "0" || (u.Path != "" && u.Path != "/"):
		bad("controller: %q is no address of a controller (want https://HOST:PORT, port 1 to 65535)", c.Controller)
	}
	if c.TLS.CA == "" || c.TLS.Cert == "" || c.TLS.Key == "" {
		bad("tls: ca, cert and key must all be given; there is no unauthenticated mode (`dyetrace pki` makes them)")
	}
	for i, b := range c.Bridges {
		if b == "" {
			bad("bridges[%d]: empty (want a bridge's name such as br-int; leave the list out for all)", i)
		}
	}
	if c.Lease < minLease || c.Lease > maxLease || c.Lease%time.Second != 0 {
		bad("lease: %v is out of range (want whole seconds, %v to %v)", c.Lease, minLease, maxLease)
	}
	if c.Rate < 1 || c.Rate > maxRate {
		bad("rate: %d is out of range (want 1 to %d probes a second)", c.Rate, maxRate)
	}
	if c.SampleRate < 1 || c.SampleRate > 10*maxRate {
		bad("sample_rate: %d is out of range (want 1 to %d samples a second)", c.SampleRate, 10*maxRate)
	}
	if c.UnderlayPort < 0 || c.UnderlayPort > 65535 {
		bad("underlay_port: %d is no UDP port (want 1 to 65535, the same on all hosts if you can; 0 switches underlay probes off)", c.UnderlayPort)
	}
	if c.UnderlayRate < 1 || c.UnderlayRate > maxRate {
		bad("underlay_rate: %d is out of range (want 1 to %d packets a second; underlay_port: 0 switches underlay probes off)", c.UnderlayRate, maxRate)
	}
	if !strings.HasPrefix(c.OVSDB, "unix:") && !strings.HasPrefix(c.OVSDB, "tcp:") {
		bad("ovsdb: %q is no OVSDB address (want unix:PATH or tcp:HOST:PORT)", c.OVSDB)
	}
	return errors.Join(errs...)
}
