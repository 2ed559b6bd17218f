package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// Files are the three PEM files of one party, as configurations name them.
type Files struct {
	// CA holds the certificates of the CAs that this party trusts, one or more.
	CA string `koanf:"ca" yaml:"ca" json:"ca"`
	// Cert holds the party's own certificate, followed by intermediate ones if any.
	Cert string `koanf:"cert" yaml:"cert" json:"cert"`
	// Key holds the private key of Cert.
	Key string `koanf:"key" yaml:"key" json:"key"`
}

var (
	// ErrExpired says that a certificate is past its last day.
	ErrExpired = errors.New("certificate has expired")
	// ErrNotYetValid says that a certificate is before its first day.
	ErrNotYetValid = errors.New("certificate is not valid yet")
	// ErrKeyMismatch says that a private key is not the certificate's.
	ErrKeyMismatch = errors.New("private key does not belong to the certificate")
)

// Party is what [Files] hold: who one is, and whom one trusts.
type Party struct {
	Role, Name string
	Leaf       *x509.Certificate
	// TLS holds Leaf, intermediates and private key.
	TLS tls.Certificate
	// Trusted are the CAs of Files.CA.
	Trusted []*x509.Certificate
	roots   *x509.CertPool
}

// Load reads files and checks what can be known without a peer: that they are there and hold
// what they should, that the key is the certificate's, that the certificate has an identity and
// is valid at now. Errors name the file, and wrap [ErrKeyMismatch], [ErrExpired],
// [ErrNotYetValid], [ErrNoIdentity] or what the file system said.
func Load(f Files, now time.Time) (*Party, error) {
	for _, x := range []struct{ field, path string }{{"ca", f.CA}, {"cert", f.Cert}, {"key", f.Key}} {
		if x.path == "" {
			return nil, fmt.Errorf("tls.%s: missing; want the path of a PEM file", x.field)
		}
	}
	p := &Party{roots: x509.NewCertPool()}
	var err error
	if p.Trusted, err = readCertificates(f.CA); err != nil {
		return nil, fmt.Errorf("tls.ca: %w", err)
	}
	for _, ca := range p.Trusted {
		if !ca.IsCA {
			return nil, fmt.Errorf("tls.ca: %s: %s is not a CA's", f.CA, subject(ca))
		}
		p.roots.AddCert(ca)
	}
	chain, err := readCertificates(f.Cert)
	if err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	p.Leaf = chain[0]
	if p.TLS, err = keyPair(f, chain); err != nil {
		return nil, fmt.Errorf("tls.key: %w", err)
	}
	if err := checkDates(p.Leaf, now); err != nil {
		return nil, fmt.Errorf("tls.cert: %s: %w", f.Cert, err)
	}
	if p.Role, p.Name, err = Identity(p.Leaf); err != nil {
		return nil, fmt.Errorf("tls.cert: %s: %w", f.Cert, err)
	}
	return p, nil
}

// Verify returns nil if one of the CAs that the party trusts has issued the party's own
// certificate, which is so wherever both sides use one CA.
func (p *Party) Verify(now time.Time) error {
	_, err := p.Leaf.Verify(x509.VerifyOptions{
		Roots:         p.roots,
		Intermediates: poolOf(p.TLS.Certificate),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return explainVerify(p.Leaf, err)
}

func keyPair(f Files, chain []*x509.Certificate) (tls.Certificate, error) {
	signer, err := readKey(f.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pub, ok := signer.Public().(interface{ Equal(x publicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return tls.Certificate{}, fmt.Errorf("%s: %w %s", f.Key, ErrKeyMismatch, f.Cert)
	}
	c := tls.Certificate{PrivateKey: signer, Leaf: chain[0]}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
}

func checkDates(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: it ended %s, now is %s", ErrExpired, stamp(cert.NotAfter), stamp(now))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%w: it begins %s, now is %s", ErrNotYetValid, stamp(cert.NotBefore), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// readCertificates returns the certificates of a PEM file, at least one; blocks of other kinds
// are passed over.
func readCertificates(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != pemCertificate {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", path, len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it; want a PEM block %q", path, pemCertificate)
	}
	return certs, nil
}

func poolOf(chain [][]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, raw := range chain[min(1, len(chain)):] {
		if c, err := x509.ParseCertificate(raw); err == nil {
			pool.AddCert(c)
		}
	}
	return pool
}

// ReadCertificate returns the first certificate of a PEM file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}
