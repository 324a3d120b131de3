// Command docs writes docs/ from the provider's own schema, templates/ and
// examples/. It needs no terraform and no built plugin: the schema is asked from
// the provider in this process.
//
//	go run ./cmd/docs          writes docs/
//	go run ./cmd/docs -check   fails where docs/ is not up to date
//
// It is run in tools/, or anywhere with -repository.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

func main() {
	repository := flag.String("repository", "..", "root of the repository")
	check := flag.Bool("check", false, "compare docs/ with what would be written, and write nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *repository, *check); err != nil {
		fmt.Fprintln(os.Stderr, "docs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, repository string, check bool) error {
	root, err := filepath.Abs(repository)
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	work, err := os.MkdirTemp("", "edge-docs-")
	if err != nil {
		return fmt.Errorf("make a working directory: %w", err)
	}
	defer os.RemoveAll(work)

	schema, err := providerSchema(ctx)
	if err != nil {
		return err
	}
	schemaFile := filepath.Join(work, "schema.json")
	if err := os.WriteFile(schemaFile, schema, 0o600); err != nil {
		return fmt.Errorf("write the schema: %w", err)
	}
	// The generator removes what it does not write, so it works on a copy.
	for _, dir := range []string{"templates", "examples"} {
		if err := os.CopyFS(filepath.Join(work, dir), os.DirFS(filepath.Join(root, dir))); err != nil {
			return fmt.Errorf("copy %s: %w", dir, err)
		}
	}
	if err := tfplugindocs(ctx, root, "generate", "--provider-dir", work, "--provider-name", "edge",
		"--rendered-provider-name", "Edge", "--providers-schema", schemaFile); err != nil {
		return err
	}
	if err := tfplugindocs(ctx, root, "validate", "--provider-dir", work, "--provider-name", "edge",
		"--providers-schema", schemaFile); err != nil {
		return err
	}
	docs, written := filepath.Join(root, "docs"), filepath.Join(work, "docs")
	if check {
		return same(docs, written)
	}
	if err := os.RemoveAll(docs); err != nil {
		return fmt.Errorf("remove old docs: %w", err)
	}
	if err := os.CopyFS(docs, os.DirFS(written)); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	return nil
}

// tfplugindocs runs the generator at the version of this module.
func tfplugindocs(ctx context.Context, root string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "tfplugindocs"}, args...)...)
	cmd.Dir = filepath.Join(root, "tools")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("tfplugindocs %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// same says which files differ between two trees.
func same(have, want string) error {
	var errs []error
	files := map[string]bool{}
	for _, dir := range []string{have, want} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			files[rel] = true
			return err
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	for rel := range files {
		a, errA := os.ReadFile(filepath.Join(have, rel))
		b, errB := os.ReadFile(filepath.Join(want, rel))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			errs = append(errs, fmt.Errorf("docs/%s is not up to date", rel))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w\nrun `go run ./cmd/docs` in tools/", errors.Join(errs...))
	}
	return nil
}
