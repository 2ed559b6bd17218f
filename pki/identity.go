package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Scheme of the URI that holds an identity.
const Scheme = "dyetrace"

// Roles, as the host part of the URI writes them.
const (
	RoleController = "controller"
	RoleAgent      = "agent"
	RoleUser       = "user"
)

var (
	// ErrNoCertificate says that a peer showed no certificate.
	ErrNoCertificate = errors.New("no certificate shown")
	// ErrNoIdentity says that a certificate holds no usable dyetrace:// URI.
	ErrNoIdentity = errors.New("no identity in certificate")
)

// Names are file names, parts of a URI and words in tables: letters, digits, dot, dash and
// underscore are safe in all three. 253 is the longest host name (RFC 1035, section 2.3.4).
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// Peer returns the role and the name in the certificate that the other side of a connection
// showed. It trusts the handshake to have verified it. The error wraps [ErrNoCertificate] or
// [ErrNoIdentity].
func Peer(cs tls.ConnectionState) (role, name string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return "", "", ErrNoCertificate
	}
	return Identity(cs.PeerCertificates[0])
}

// Identity returns the role and the name in a certificate. The error wraps [ErrNoIdentity]: the
// URI is missing, is there twice, or is not dyetrace://ROLE/NAME with a known role.
func Identity(cert *x509.Certificate) (role, name string, err error) {
	var found *url.URL
	for _, u := range cert.URIs {
		if u.Scheme != Scheme {
			continue
		}
		if found != nil {
			return "", "", fmt.Errorf("%s: %w: both %s and %s; want one", subject(cert), ErrNoIdentity, found, u)
		}
		found = u
	}
	if found == nil {
		return "", "", fmt.Errorf("%s: %w: want a URI name dyetrace://{controller,agent,user}/NAME", subject(cert), ErrNoIdentity)
	}
	role, name = found.Host, strings.TrimPrefix(found.Path, "/")
	if err := checkRole(role); err != nil {
		return "", "", fmt.Errorf("%s: %w: %s: %w", subject(cert), ErrNoIdentity, found, err)
	}
	if err := checkName(name); err != nil {
		return "", "", fmt.Errorf("%s: %w: %s: %w", subject(cert), ErrNoIdentity, found, err)
	}
	return role, name, nil
}

func identityURI(role, name string) *url.URL {
	return &url.URL{Scheme: Scheme, Host: role, Path: "/" + name}
}

func checkRole(role string) error {
	switch role {
	case RoleController, RoleAgent, RoleUser:
		return nil
	}
	return fmt.Errorf("role %q is unknown; want controller, agent or user", role)
}

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q cannot be used; want letters, digits, dots, dashes and underscores, beginning with a letter or digit", name)
	}
	return nil
}

func subject(cert *x509.Certificate) string {
	if s := cert.Subject.String(); s != "" {
		return "certificate of " + s
	}
	return "certificate without subject"
}
