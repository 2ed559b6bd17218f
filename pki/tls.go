package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ServerTLS returns the controller's configuration: TLS 1.3 only, HTTP/2 or HTTP/1.1, and a
// client certificate that one of the CAs in f.CA has issued for client authentication and that
// has an identity. What a role may do is for the caller to decide, with [Peer].
//
// f.Cert must be a controller's. Errors are those of [Load].
func ServerTLS(f Files) (*tls.Config, error) {
	src, err := newSource(f, func(p *Party) error {
		if p.Role != RoleController {
			return fmt.Errorf("tls.cert: %s: it is for %s %s; want a controller's", f.Cert, p.Role, p.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := serverConfig()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		p, err := src.current(time.Now())
		if err != nil {
			return nil, err
		}
		c := serverConfig()
		c.ClientCAs = p.roots
		c.Certificates = []tls.Certificate{p.TLS}
		return c, nil
	}
	return c, nil
}

func serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert,
		// A resumed session would skip the look at dates and CAs; agents connect once a day,
		// not thousands of times a second.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, _, err := Peer(cs)
			return err
		},
	}
}

// ClientTLS returns the configuration of an agent or a user who dials the controller: TLS 1.3
// only, and a server certificate that one of the CAs in f.CA has issued for server
// authentication, whose DNS or IP names contain serverName, and whose role is controller.
//
// serverName is the host of the URL dialled, or what stands for it where that is a unix socket;
// it must not be empty. Errors are those of [Load].
func ClientTLS(f Files, serverName string) (*tls.Config, error) {
	if serverName == "" {
		return nil, errors.New("server name: missing; want the DNS or IP name in the controller's certificate")
	}
	src, err := newSource(f, nil)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			p, err := src.current(time.Now())
			if err != nil {
				return nil, err
			}
			return &p.TLS, nil
		},
		// crypto/tls would verify against CAs fixed now. VerifyConnection does all that it does,
		// against the CAs that the file holds at the time of the handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			now := time.Now()
			p, err := src.current(now)
			if err != nil {
				return err
			}
			if err := verifyServer(cs.PeerCertificates, p.roots, serverName, now); err != nil {
				return fmt.Errorf("controller's certificate (trusted CAs: %s): %w", f.CA, err)
			}
			return nil
		},
	}, nil
}

// verifyServer is what crypto/tls does with a server's chain when InsecureSkipVerify is off, and
// the role besides.
func verifyServer(chain []*x509.Certificate, roots *x509.CertPool, serverName string, now time.Time) error {
	if len(chain) == 0 {
		return ErrNoCertificate
	}
	leaf := chain[0]
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: inter,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return explainVerify(leaf, err)
	}
	if err := leaf.VerifyHostname(serverName); err != nil {
		return fmt.Errorf("it is for %s, not for %s: %w", names(leaf), serverName, err)
	}
	role, name, err := Identity(leaf)
	if err != nil {
		return err
	}
	if role != RoleController {
		return fmt.Errorf("it is for %s %s; want a controller's", role, name)
	}
	return nil
}

// explainVerify puts the facts that a reader needs in front of what crypto/x509 says.
func explainVerify(cert *x509.Certificate, err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return fmt.Errorf("issued by %s, which is not among the trusted CAs: %w", cert.Issuer, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("valid %s to %s: %w", stamp(cert.NotBefore), stamp(cert.NotAfter), err)
	}
	return err
}

// names lists what a certificate is valid for, for people.
func names(cert *x509.Certificate) string {
	all := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no host"
	}
	return strings.Join(all, ", ")
}
