package pki

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// writePair writes NAME.key, then NAME.crt: who reads in between finds a key that does not
// match, and keeps what it has, rather than a certificate that nobody can use.
func writePair(dir, name string, cert []byte, key crypto.Signer, replace bool) error {
	pem, err := encodeKey(key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if err := writeFile(filepath.Join(dir, name+".key"), pem, 0o600, replace); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name+".crt"), cert, 0o644, replace)
}

// writeFile makes path hold data, whole or not at all, also after a crash. Without replace it
// fails with ErrExists rather than touch a file that is there.
func writeFile(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600 from its birth
	if err != nil {
		return err
	}
	defer func() {
		// After a rename there is nothing to remove, which is as good.
		if rmErr := os.Remove(tmp.Name()); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if replace {
		err = os.Rename(tmp.Name(), path)
	} else {
		// link(2), unlike rename(2), fails where the name is taken.
		err = os.Link(tmp.Name(), path)
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s: %w", path, ErrExists)
		}
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
