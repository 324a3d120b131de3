package pki

import (
	"bytes"
	"errors"
	"testing"
)

func TestDocuments(t *testing.T) {
	store, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := store.Authority("ca", "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := store.Authority("other", "b")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := ca.SignDocument("list", []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := VerifyDocument(ca.Certificate, "list", doc); err != nil || string(got) != "payload" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := VerifyDocument(ca.Certificate, "policy", doc); !errors.Is(err, ErrDocument) {
		t.Errorf("another kind: %v", err)
	}
	if _, err := VerifyDocument(other.Certificate, "list", doc); !errors.Is(err, ErrDocument) {
		t.Errorf("another authority: %v", err)
	}
	// The kind inside says what is asked for, the signature is of another.
	renamed := bytes.Replace(doc, []byte(`"list"`), []byte(`"lost"`), 1)
	if _, err := VerifyDocument(ca.Certificate, "lost", renamed); !errors.Is(err, ErrDocument) {
		t.Errorf("renamed: %v", err)
	}
	leafFile, _, _, err := store.Ensure(ca, Request{Name: "leaf", CommonName: "leaf", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, err := store.load("leaf")
	if err != nil {
		t.Fatal(leafFile, err)
	}
	if _, err := VerifyDocument(leaf, "list", doc); !errors.Is(err, ErrDocument) {
		t.Errorf("no authority: %v", err)
	}
	if _, err := ca.SignDocument("list", make([]byte, MaxDocument)); err == nil {
		t.Error("too large a document was signed")
	}
	if _, err := VerifyDocument(ca.Certificate, "list", make([]byte, MaxDocument+1)); err == nil {
		t.Error("too large a document was read")
	}
}

func FuzzVerifyDocument(f *testing.F) {
	store, err := Open(f.TempDir(), nil)
	if err != nil {
		f.Fatal(err)
	}
	ca, err := store.Authority("ca", "a")
	if err != nil {
		f.Fatal(err)
	}
	doc, err := ca.SignDocument("list", []byte("payload"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"kind":"list","payload":"eA==","signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := VerifyDocument(ca.Certificate, "list", b)
		if err == nil && string(got) != "payload" {
			t.Fatalf("a document that was not signed: %q", got)
		}
	})
}
