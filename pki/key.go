package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// publicKey is crypto.PublicKey by its real name: the Equal methods of the standard library's
// keys take it, and only the identical type satisfies an interface.
type publicKey = crypto.PublicKey

// newKey returns a fresh key: ECDSA on P-256 (FIPS 186-5). Ed25519 would be smaller and no less
// safe, but the API is plain HTTPS for whoever likes, and neither browsers nor BoringSSL's
// default, which gRPC in C++, Python and Ruby is built on, accept Ed25519 certificates.
func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
}

// readKey reads a private key of any kind that Go knows, in PKCS #8 (RFC 5958), SEC 1 (RFC 5915)
// or PKCS #1 (RFC 8017), unencrypted.
func readKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		var key any
		switch block.Type {
		case pemKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, fmt.Errorf("%s: key is encrypted; want it in the clear, readable by its owner only", path)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s: a %T cannot sign; want an ECDSA, Ed25519 or RSA key", path, key)
		}
		return signer, nil
	}
	return nil, fmt.Errorf("%s: no private key in it; want a PEM block %q", path, pemKey)
}
