package serve

import (
	"fmt"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// options are the query of a list or watch, read and judged as an apiserver does.
type options struct {
	internalversion.ListOptions
	version replica.Version
	// latest: no resourceVersion was given.
	latest bool
}

// parseOptions returns the Status to answer with where the query is wrong.
func parseOptions(query url.Values, verb string) (options, *metav1.Status) {
	var o options
	if err := internalscheme.ParameterCodec.DecodeParameters(query, metav1.SchemeGroupVersion, &o.ListOptions); err != nil {
		return o, bad(err.Error())
	}
	o.Watch = verb == "watch"
	if errs := validation.ValidateListOptions(&o.ListOptions, true); len(errs) > 0 {
		invalid := apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
		return o, &invalid.ErrStatus
	}
	if o.Limit < 0 {
		return o, bad(fmt.Sprintf("limit %d is negative", o.Limit))
	}
	if o.Continue != "" && o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return o, bad("specifying resource version is not allowed when using continue")
	}
	var err error
	if o.version, err = replica.ParseVersion(o.ResourceVersion); err != nil {
		return o, bad("invalid resource version: " + err.Error())
	}
	o.latest = o.ResourceVersion == ""
	return o, nil
}

// exact says whether a list must show one version and no other. Of old, a limit
// with a version means it too (apiserver's storage/etcd3/store.go).
func (o *options) exact() bool {
	return o.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		o.ResourceVersionMatch == "" && o.Limit > 0 && o.version > 0
}

// page is how many objects an answer may have; 0 is all. An apiserver ignores a
// limit where any version will do.
func (o *options) page() int {
	if o.version == 0 && !o.latest && o.Continue == "" {
		return 0
	}
	return int(o.Limit)
}

// sendsInitial says whether a watch begins with what there is, and whether a
// bookmark ends that.
func (o *options) sendsInitial() (initial, bookmark bool) {
	if o.SendInitialEvents != nil {
		return *o.SendInitialEvents, *o.SendInitialEvents && o.AllowWatchBookmarks
	}
	return o.version == 0, false
}

// exactField returns the one value a field selector allows a field.
func (o *options) exactField(field string) string {
	if o.FieldSelector == nil {
		return ""
	}
	value, _ := o.FieldSelector.RequiresExactMatch(field)
	return value
}
