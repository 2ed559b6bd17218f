package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

const (
	caCert = "ca.crt"
	caKey  = "ca.key"

	// A CA of one site outlives the hardware beside it; changing it means touching every host.
	caDays = 3650
	// DefaultDays is how long a certificate is valid if nobody says otherwise: renewal once a
	// year is seldom enough to be done by hand and often enough not to be forgotten.
	DefaultDays = 365
	// Clocks of hosts differ by minutes where NTP is not yet up.
	backdate = 10 * time.Minute
)

// ErrExists says that a file is there already, and was left alone.
var ErrExists = errors.New("exists already")

// CA is a certificate authority in a directory: ca.crt and ca.key, and what it issued beside
// them.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// Request says what to issue.
type Request struct {
	Role string
	Name string
	// SANs are DNS names and IP addresses, for controllers; the name itself is added as a DNS
	// name where it can be one.
	SANs []string
	// Days of validity; 0 is DefaultDays.
	Days int
	// Renew replaces a certificate that is there already.
	Renew bool
}

// CreateCA makes a CA in dir, which is made if it is not there. It never overwrites: the error
// wraps [ErrExists] where either file is there.
func CreateCA(dir string, now time.Time) (*CA, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	for _, name := range []string{caCert, caKey} {
		if path := filepath.Join(dir, name); exists(path) {
			return nil, fmt.Errorf("CA: %s: %w; want a directory without a CA, or use the one that is there", path, ErrExists)
		}
	}
	key, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("CA: key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Dyetrace CA " + now.UTC().Format("2006-01-02")},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(0, 0, caDays),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("CA: certificate: %w", err)
	}
	if err := writePair(dir, "ca", encodeCertificate(der), key, false); err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	return OpenCA(dir, now)
}

// OpenCA opens the CA that [CreateCA] made in dir. Errors are those of [Load].
func OpenCA(dir string, now time.Time) (*CA, error) {
	path := filepath.Join(dir, caCert)
	certs, err := readCertificates(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("CA: %w; make one with: dyetrace pki init --dir %s", err, dir)
	} else if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	ca := &CA{dir: dir, cert: certs[0]}
	if ca.key, err = readKey(filepath.Join(dir, caKey)); err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	if _, err := keyPair(Files{Cert: path, Key: filepath.Join(dir, caKey)}, certs[:1]); err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	if !ca.cert.IsCA {
		return nil, fmt.Errorf("CA: %s: %s is not a CA's", path, subject(ca.cert))
	}
	if err := checkDates(ca.cert, now); err != nil {
		return nil, fmt.Errorf("CA: %s: %w", path, err)
	}
	return ca, nil
}

// Certificate returns the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Issue makes a key and a certificate for it, writes NAME.key (mode 0600) and NAME.crt, and
// returns the files that their holder needs. Errors name the field that is wrong; they wrap
// [ErrExists] where either file is there and r.Renew is not set.
func (ca *CA) Issue(r Request, now time.Time) (Files, error) {
	template, err := ca.template(r, now)
	if err != nil {
		return Files{}, fmt.Errorf("issue: %w", err)
	}
	f := Files{
		CA:   filepath.Join(ca.dir, caCert),
		Cert: filepath.Join(ca.dir, r.Name+".crt"),
		Key:  filepath.Join(ca.dir, r.Name+".key"),
	}
	for _, path := range []string{f.Key, f.Cert} {
		if exists(path) && !r.Renew {
			return Files{}, fmt.Errorf("issue: %s: %w; renewing it would replace it", path, ErrExists)
		}
	}
	key, err := newKey()
	if err != nil {
		return Files{}, fmt.Errorf("issue: key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Files{}, fmt.Errorf("issue: certificate: %w", err)
	}
	if err := writePair(ca.dir, r.Name, encodeCertificate(der), key, r.Renew); err != nil {
		return Files{}, fmt.Errorf("issue: %w", err)
	}
	return f, nil
}

func (ca *CA) template(r Request, now time.Time) (*x509.Certificate, error) {
	if err := checkRole(r.Role); err != nil {
		return nil, err
	}
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	if r.Name == "ca" {
		return nil, fmt.Errorf("name %q is taken: %s and %s are the CA's own", r.Name, caCert, caKey)
	}
	if r.Days < 0 {
		return nil, fmt.Errorf("days: %d; want 1 or more", r.Days)
	}
	if r.Days == 0 {
		r.Days = DefaultDays
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: r.Name, OrganizationalUnit: []string{r.Role}},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.AddDate(0, 0, r.Days),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{identityURI(r.Role, r.Name)},
	}
	if t.NotBefore.Before(ca.cert.NotBefore) {
		t.NotBefore = ca.cert.NotBefore
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		left := int(ca.cert.NotAfter.Sub(now).Hours() / 24)
		return nil, fmt.Errorf("days: %d would outlive the CA, which ends %s; want at most %d", r.Days, stamp(ca.cert.NotAfter), left)
	}
	if r.Role == RoleController {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		if validHost.MatchString(r.Name) {
			r.SANs = append([]string{r.Name}, r.SANs...)
		}
	}
	return t, addSANs(t, r.SANs)
}

// Host names by RFC 1123, section 2.1, with the wildcard that RFC 6125 allows in front.
var validHost = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

func addSANs(t *x509.Certificate, sans []string) error {
	seen := make(map[string]bool)
	for _, san := range sans {
		if seen[san] {
			continue
		}
		seen[san] = true
		if ip := net.ParseIP(san); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if validHost.MatchString(san) {
			t.DNSNames = append(t.DNSNames, san)
		} else {
			return fmt.Errorf("san: %q is neither a host name nor an IP address", san)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
