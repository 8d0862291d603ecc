package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/alexedwards/argon2id"
	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/console"
	"github.com/penstock/penstock/services/internal/config"
)

// loginUser is who logs in with the password of the folder of --login.
const loginUser = "operator"

// envConsoleLogin names the folder of --login for the command that prints the password.
const envConsoleLogin = "PENSTOCK_CONSOLE_LOGIN"

// loginUsers returns the user whose password is in dir. Where there is none, it is made:
// a console that others reach never starts without a password.
func loginUsers(dir string) ([]console.User, error) {
	password, err := loginPassword(dir, false)
	if err != nil {
		return nil, err
	}
	hash, err := argon2id.CreateHash(password, &hashParams)
	if err != nil {
		return nil, err
	}
	return []console.User{{Name: loginUser, PasswordHash: config.NewSecret(hash), Role: console.Operator}}, nil
}

// loginPassword reads the password in dir, or makes one: always, when anew is true.
func loginPassword(dir string, anew bool) (string, error) {
	path := filepath.Join(dir, "password")
	data, err := os.ReadFile(path) //nolint:gosec // where the operator wants it
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", usageError{fmt.Errorf("the password of the console: %w; let this user read it", err)}
	}
	if password := strings.TrimSpace(string(data)); password != "" && !anew {
		if len([]rune(password)) < leastPassword {
			return "", usageError{fmt.Errorf("the password in %s has fewer than %d characters: use a longer one", path, leastPassword)}
		}
		return password, nil
	}
	random := make([]byte, 18)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	password := base64.RawURLEncoding.EncodeToString(random)
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // where the operator wants it
		return "", fmt.Errorf("make a password for the console: %w", err)
	}
	temp, err := os.CreateTemp(dir, ".password-*") // 0600
	if err != nil {
		return "", fmt.Errorf("make a password for the console: %w", err)
	}
	_, err = temp.WriteString(password + "\n")
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path) //nolint:gosec // where the operator wants it
	}
	if err != nil {
		_ = os.Remove(temp.Name()) //nolint:gosec // where the operator wants it
		return "", fmt.Errorf("make a password for the console: %w", err)
	}
	return password, nil
}

func newConsolePassword() *cobra.Command {
	login, anew, asJSON := os.Getenv(envConsoleLogin), false, false
	cmd := &cobra.Command{
		Use: "password", Args: exactly(0),
		Short: "Print the password that --login of the console has made",
		Long: `Prints name and password of the user that "penstock console --login FOLDER" lets in,
or makes a new password. A console that runs takes a new one when it is started again.`,
		Example: "  penstock console password --login penstock-data/login\n  docker compose exec console /penstock console password",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if login == "" {
				return usageError{errors.New("say with --login which folder the console was given")}
			}
			if _, err := os.Stat(filepath.Join(login, "password")); err != nil && !anew { //nolint:gosec // where the operator wants it
				return fmt.Errorf("%w; start the console with --login %s first", err, login)
			}
			password, err := loginPassword(login, anew)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"user": loginUser, "password": password})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "user      %s\npassword  %s\n", loginUser, password)
			return err
		},
	}
	cmd.Flags().StringVar(&login, "login", login, "the folder of --login of the console; also in the environment variable "+envConsoleLogin)
	cmd.Flags().BoolVar(&anew, "new", false, "make a new password")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
