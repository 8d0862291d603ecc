// Command man prints the manual page of penstock, made of what the program says of
// itself:
//
//	go run ./deploy/debian/man bin/penstock > penstock.1
//
// It asks the program for the help of each of its commands, so that the page needs no
// library and cannot tell anything else.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man PROGRAM")
		os.Exit(2)
	}
	if err := page(os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

// help is what the program says of a command.
type help struct {
	about    string
	sections []section
	commands []string
}

type section struct{ title, text string }

func ask(program string, command []string) (help, error) {
	out, err := exec.Command(program, append(command, "--help")...).Output() //nolint:gosec // the program that was just built
	if err != nil {
		return help{}, fmt.Errorf("%s %s --help: %w", program, strings.Join(command, " "), err)
	}
	return read(string(out)), nil
}

// read takes a help text apart: what comes first, then sections under lines that stand
// at the margin and end in a colon.
func read(text string) help {
	var h help
	var title string
	var body []string
	end := func() {
		t := strings.Trim(strings.Join(body, "\n"), "\n")
		switch {
		case title == "":
			h.about = t
		case strings.HasSuffix(title, "Commands"):
			for _, line := range strings.Split(t, "\n") {
				if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); name != "" && name != "help" {
					h.commands = append(h.commands, name)
				}
			}
		default:
			h.sections = append(h.sections, section{title, t})
		}
		body = nil
	}
	for _, line := range strings.Split(text, "\n") {
		head := strings.TrimSuffix(line, ":")
		switch {
		case head != line && headings[head]:
			end()
			title = head
		case strings.HasPrefix(line, "Use \""): // ... --help" for more: it is all here
		default:
			body = append(body, line)
		}
	}
	end()
	return h
}

var headings = map[string]bool{"Usage": true, "Examples": true, "Available Commands": true, "Flags": true, "Global Flags": true, "Aliases": true}

func page(w io.Writer, program string) error {
	out := bufio.NewWriter(w)
	root, err := ask(program, nil)
	if err != nil {
		return err
	}
	version, err := exec.Command(program, "version").Output() //nolint:gosec // the program that was just built
	if err != nil {
		return fmt.Errorf("%s version: %w", program, err)
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(version)), "\n")
	day := time.Now()
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		day = time.Unix(epoch, 0)
	}
	fmt.Fprintf(out, ".TH PENSTOCK 1 %s %s \"User Commands\"\n", day.UTC().Format(time.DateOnly), quote(name))
	fmt.Fprintf(out, ".SH NAME\npenstock \\- take log events from where they are left to where they are worked with\n")
	fmt.Fprintf(out, ".SH SYNOPSIS\n.B penstock\n.I command\n.RI [ flags ]\n.SH DESCRIPTION\n%s\n", literal(root.about))
	for _, s := range root.sections {
		if s.title == "Examples" {
			fmt.Fprintf(out, ".SH EXAMPLES\n%s\n", literal(s.text))
		}
	}
	fmt.Fprintln(out, ".SH COMMANDS")
	if err := commands(out, program, nil, root.commands); err != nil {
		return err
	}
	fmt.Fprint(out, `.SH FILES
.TP
.I /etc/penstock/penstock.yaml
The configuration of the services.
.TP
.I /etc/default/penstock
Environment of the services.
.TP
.I /var/lib/penstock
The streams and the ledger.
.SH SEE ALSO
.BR systemctl (1),
.BR journalctl (1)
`)
	return out.Flush()
}

func commands(out io.Writer, program string, above, names []string) error {
	for _, name := range names {
		path := append(append([]string(nil), above...), name)
		h, err := ask(program, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, ".SS penstock %s\n%s\n", escape(strings.Join(path, " ")), literal(h.about))
		for _, s := range h.sections {
			if s.title != "Global Flags" {
				fmt.Fprintf(out, ".PP\n%s:\n%s\n", s.title, literal(s.text))
			}
		}
		// What a shell's completion has to say of itself is no news to a reader.
		if name == "completion" {
			continue
		}
		if err := commands(out, program, path, h.commands); err != nil {
			return err
		}
	}
	return nil
}

// literal keeps lines as they are.
func literal(text string) string {
	if text == "" {
		return ".PP"
	}
	return ".PP\n.nf\n" + escape(text) + "\n.fi"
}

// escape keeps roff from reading backslashes, hyphens, and dots and quotes at the
// beginning of lines as its own.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `→`, `\(->`, `…`, `...`, `^`, `\(ha`, `~`, `\(ti`, "`", `\(ga`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func quote(text string) string { return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"` }
