package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"

	"github.com/penstock/penstock/topology"
)

// Where the files of penstock topology users are, below its folder.
const (
	usersFile    = "nats/users.conf"
	passwordFile = "password"
	secretsFile  = "nats/secrets.yaml" //nolint:gosec // a name
)

// usersFlags are those of penstock topology users.
type usersFlags struct {
	dir, owner, account, certName, format, namespace string

	roles                []string
	rotate, mtls, asJSON bool
}

func newTopologyUsers() *cobra.Command {
	var flags usersFlags
	cmd := &cobra.Command{
		Use: "users", Args: exactly(0),
		Short: "Write NATS users, one for each stage, who may do no more than it needs",
		Long: `Writes the users for a nats.conf: one for each stage, one for the console and for
operators' commands (operate), and one that may manage the streams (admin).

Without --dir the block is printed, with an environment variable of the NATS server
in place of each password, e.g. $PENSTOCK_PASSWORD_INGEST.

With --dir there are then, for nobody else to read:

  DIR/nats/users.conf     include it in nats.conf; it has hashes only
  DIR/ROLE/password       the password of a role, for its bus.password

What is there already is kept, so that it is safe to repeat; after an update of
penstock, repeat it, and have the server read its configuration again. --rotate makes
new passwords. With --mtls there are none: who has the certificate is the user.`,
		Example: `  penstock topology users --dir /etc/penstock/users
  penstock topology users --dir /etc/penstock/users --rotate --role fetch
  penstock topology users --dir /run/users --owner 65532:65532 --account PENSTOCK
  penstock topology users --mtls --cert-name '{role}.penstock.internal'
  penstock topology users --dir users --format kubernetes --namespace logs
  penstock topology users --json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.run(cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.dir, "dir", "", "folder for the users and a folder with the password of each")
	f.StringSliceVar(&flags.roles, "role", nil, "only these users; those that the folder has besides are kept: "+roleList())
	f.BoolVar(&flags.rotate, "rotate", false, "make new passwords")
	f.StringVar(&flags.owner, "owner", "", "to whom the files belong, as uid:gid; the default is who runs this")
	f.StringVar(&flags.account, "account", "", "put the users into a NATS account of this name, with JetStream")
	f.BoolVar(&flags.mtls, "mtls", false, "name users by their certificates, for verify_and_map in nats.conf")
	f.StringVar(&flags.certName, "cert-name", "{role}.penstock", "what a role's certificate is called (DNS name, mail address, URI or subject), with {role} in it")
	f.StringVar(&flags.format, "format", "nats", "nats, or kubernetes: a manifest of Secrets besides, in DIR/"+secretsFile)
	f.StringVar(&flags.namespace, "namespace", "", "namespace of the Secrets")
	f.BoolVar(&flags.asJSON, "json", false, "print JSON")
	return cmd
}

func roleList() string {
	names := make([]string, len(topology.Roles))
	for i, r := range topology.Roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// natsUser is a user as nats.conf has it.
type natsUser struct {
	Role topology.Role `json:"role"`
	Name string        `json:"user"`
	// Secret is the hash of the password, or the variable that has it. "" with certificates.
	Secret string `json:"-"`
	// Password is in the file, File says where. It is new when it was made just now.
	Password    string               `json:"-"`
	File        string               `json:"password_file,omitempty"`
	New         bool                 `json:"new"`
	Permissions topology.Permissions `json:"permissions"`
}

func (f *usersFlags) validate() error {
	for _, r := range f.roles {
		if !topology.Role(r).Known() {
			return usageError{fmt.Errorf("--role %q: use some of %s", r, roleList())}
		}
	}
	switch {
	case f.format != "nats" && f.format != "kubernetes":
		return usageError{fmt.Errorf("--format %q: use nats or kubernetes", f.format)}
	case f.format == "kubernetes" && f.dir == "":
		return usageError{errors.New("--format kubernetes: the manifest has the passwords in it and is not printed; say with --dir where to write it")}
	case f.rotate && f.dir == "":
		return usageError{errors.New("--rotate: say with --dir where the passwords are")}
	case f.rotate && f.mtls:
		return usageError{errors.New("--rotate: with --mtls there are no passwords; issue new certificates instead")}
	case f.mtls && !strings.Contains(f.certName, "{role}"):
		return usageError{fmt.Errorf("--cert-name %q: it needs {role} in it, so that each role has a name of its own", f.certName)}
	case f.account != "" && !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(f.account):
		return usageError{fmt.Errorf("--account %q: use letters, digits, - and _", f.account)}
	case f.namespace != "" && !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`).MatchString(f.namespace):
		return usageError{fmt.Errorf("--namespace %q: use small letters, digits and -", f.namespace)}
	}
	_, _, err := f.ownerIDs()
	return err
}

// ownerIDs are -1 where nobody is named.
func (f *usersFlags) ownerIDs() (uid, gid int, err error) {
	if f.owner == "" {
		return -1, -1, nil
	}
	u, g, both := strings.Cut(f.owner, ":")
	uid, err = strconv.Atoi(u)
	if err == nil && both {
		gid, err = strconv.Atoi(g)
	}
	if err != nil || !both || uid < 0 || gid < 0 {
		return -1, -1, usageError{fmt.Errorf("--owner %q: use the numbers of a user and a group, e.g. 65532:65532", f.owner)}
	}
	return uid, gid, nil
}

func (f *usersFlags) run(w io.Writer) error {
	if err := f.validate(); err != nil {
		return err
	}
	users, err := f.users()
	if err != nil {
		return err
	}
	if f.dir != "" {
		if err := f.write(users); err != nil {
			return err
		}
	}
	switch {
	case f.asJSON:
		return writeJSON(w, users)
	case f.dir == "":
		_, err := io.WriteString(w, f.conf(users))
		return err
	}
	t := table(w)
	fmt.Fprintln(t, "USER\tPASSWORD\tFILE")
	for _, u := range users {
		state, file := "kept", u.File
		switch {
		case f.mtls:
			state, file = "by certificate", "-"
		case u.New:
			state = "new"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", u.Name, state, file)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\nInclude %s in nats.conf, and have the server read it again:\n  nats-server --signal reload\n", filepath.Join(f.dir, usersFile))
	return err
}

// users are those that are asked for, and those that the folder has already.
func (f *usersFlags) users() ([]natsUser, error) {
	asked := func(r topology.Role) bool { return len(f.roles) == 0 || slices.Contains(f.roles, string(r)) }
	known := map[string]string{}
	if f.dir != "" {
		var err error
		if known, err = readHashes(filepath.Join(f.dir, usersFile)); err != nil {
			return nil, err
		}
	}
	var users []natsUser
	for _, r := range topology.Roles {
		u := natsUser{Role: r, Name: string(r), Permissions: r.Permissions()}
		if f.mtls {
			u.Name = strings.ReplaceAll(f.certName, "{role}", string(r))
		}
		hash, there := known[u.Name]
		if !asked(r) && !there {
			continue
		}
		switch {
		case f.mtls:
		case f.dir == "":
			u.Secret = "$PENSTOCK_PASSWORD_" + strings.ToUpper(string(r))
		case !asked(r): // its password may be elsewhere: the hash is enough
			u.Secret, u.File = hash, filepath.Join(f.dir, string(r), passwordFile)
		default:
			u.File = filepath.Join(f.dir, string(r), passwordFile)
			if err := u.fill(hash, f.rotate); err != nil {
				return nil, err
			}
		}
		users = append(users, u)
	}
	return users, nil
}

// fill reads the password of a user, or makes one, and its hash.
func (u *natsUser) fill(hash string, rotate bool) error {
	data, err := os.ReadFile(u.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the password of %s: %w", u.Name, err)
	}
	u.Password = strings.TrimSpace(string(data))
	if u.Password == "" || rotate {
		random := make([]byte, 30)
		if _, err := rand.Read(random); err != nil {
			return err
		}
		u.Password, u.New = base64.RawURLEncoding.EncodeToString(random), true
	}
	u.Secret = hash
	if hash == "" || bcrypt.CompareHashAndPassword([]byte(hash), []byte(u.Password)) != nil {
		// For a password of 240 random bits the least cost is plenty, and the server
		// does not pay for more at each connection.
		made, err := bcrypt.GenerateFromPassword([]byte(u.Password), bcrypt.MinCost)
		if err != nil {
			return fmt.Errorf("hash the password in %s: %w", u.File, err)
		}
		u.Secret = string(made)
	}
	return nil
}

var userLine = regexp.MustCompile(`\{ user: "([^"]+)"(?:, password: "(\$2[aby]\$[^"]+)")?`)

// readHashes reads the users of a users.conf that we wrote, with their hashes where they
// have some; none when there is no such file.
func readHashes(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the users that are there: %w", err)
	}
	known := map[string]string{}
	for _, m := range userLine.FindAllStringSubmatch(string(data), -1) {
		known[m[1]] = m[2]
	}
	return known, nil
}

// conf is the part of a nats.conf.
func (f *usersFlags) conf(users []natsUser) string {
	var b strings.Builder
	b.WriteString("# Written by penstock topology users: repeat it rather than change this.\n")
	indent := "  "
	if f.account != "" {
		indent = "    "
		fmt.Fprintf(&b, "accounts {\n  %s {\n    jetstream: enabled\n    users = [\n", f.account)
	} else {
		b.WriteString("authorization {\n  users = [\n")
	}
	list := func(verb string, subjects []string) string {
		if len(subjects) == 0 {
			return ""
		}
		quoted := make([]string, len(subjects))
		for i, s := range subjects {
			quoted[i] = indent + "        " + strconv.Quote(s) + "\n"
		}
		return indent + "      " + verb + ": [\n" + strings.Join(quoted, "") + indent + "      ]\n"
	}
	for _, u := range users {
		secret := ""
		switch {
		case strings.HasPrefix(u.Secret, "$PENSTOCK"):
			secret = ", password: " + u.Secret // a variable is not quoted
		case u.Secret != "":
			secret = ", password: " + strconv.Quote(u.Secret)
		}
		fmt.Fprintf(&b, "%s  { user: %s%s, permissions: {\n", indent, strconv.Quote(u.Name), secret)
		fmt.Fprintf(&b, "%s    publish: {\n%s%s%s    }\n", indent, list("allow", u.Permissions.Publish), list("deny", u.Permissions.Deny), indent)
		fmt.Fprintf(&b, "%s    subscribe: {\n%s%s    }\n", indent, list("allow", u.Permissions.Subscribe), indent)
		fmt.Fprintf(&b, "%s    allow_responses: { max: 1, expires: \"1m\" }\n%s  } }\n", indent, indent)
	}
	b.WriteString(indent + "]\n")
	if f.account != "" {
		b.WriteString("  }\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// write stores the passwords first: a user whose password nobody has is of no use.
func (f *usersFlags) write(users []natsUser) error {
	uid, gid, err := f.ownerIDs()
	if err != nil {
		return err
	}
	for _, u := range users {
		if u.Password == "" {
			continue
		}
		if err := replaceFile(u.File, u.Password+"\n", uid, gid); err != nil {
			return fmt.Errorf("write the password of %s: %w", u.Name, err)
		}
	}
	if f.format == "kubernetes" {
		if err := replaceFile(filepath.Join(f.dir, secretsFile), f.manifest(users), uid, gid); err != nil {
			return fmt.Errorf("write the manifest: %w", err)
		}
	}
	if err := replaceFile(filepath.Join(f.dir, usersFile), f.conf(users), uid, gid); err != nil {
		return fmt.Errorf("write the users: %w", err)
	}
	return nil
}

// replaceFile writes a file that only its owner reads, at once or not at all. One that is
// as it should be stays.
func replaceFile(path, content string, uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil { //nolint:gosec // the files in it are closed, and NATS may be another user
		return err
	}
	own := func(path string) error {
		if uid < 0 {
			return nil
		}
		return os.Chown(path, uid, gid)
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == content {
		return errors.Join(os.Chmod(path, 0o600), own(path))
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	_, err = temp.WriteString(content)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = own(temp.Name())
	}
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// manifest has a Secret with the users for NATS, and one with the password of each.
func (f *usersFlags) manifest(users []natsUser) string {
	var b strings.Builder
	secret := func(name, key, content string) {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n", name)
		if f.namespace != "" {
			fmt.Fprintf(&b, "  namespace: %s\n", f.namespace)
		}
		fmt.Fprintf(&b, "type: Opaque\ndata:\n  %s: %s\n", key, base64.StdEncoding.EncodeToString([]byte(content)))
	}
	secret("penstock-nats-users", "users.conf", f.conf(users))
	for _, u := range users {
		if u.Password != "" {
			secret("penstock-user-"+string(u.Role), passwordFile, u.Password)
		}
	}
	return b.String()
}
