package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/alexedwards/argon2id"

	"github.com/penstock/penstock/services/console"
)

// The password of the console is made once, for its owner alone, and replaced only when
// somebody asks.
func TestConsoleLogin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "login")
	if err := execute("console", "password", "--login", dir); err == nil {
		t.Error("a password was printed before there was one")
	}
	fits := func(password string) bool {
		t.Helper()
		users, err := loginUsers(dir)
		if err != nil || len(users) != 1 || users[0].Name != loginUser || users[0].Role != console.Operator {
			t.Fatalf("users: %+v, %v", users, err)
		}
		ok, err := argon2id.ComparePasswordAndHash(password, users[0].PasswordHash.Reveal())
		return err == nil && ok
	}
	if fits("") {
		t.Error("an empty password gets in")
	}
	first, err := loginPassword(dir, false)
	if err != nil || !fits(first) {
		t.Fatalf("the first password does not fit: %v", err)
	}
	if again, _ := loginPassword(dir, false); again != first {
		t.Error("a second start made another password")
	}
	if info, err := os.Stat(filepath.Join(dir, "password")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	if err := execute("console", "password", "--login", dir, "--new"); err != nil || fits(first) {
		t.Errorf("after --new the old password fits still: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loginUsers(dir); exitCode(err) != exitUsage {
		t.Errorf("a short password: %v", err)
	}
}
