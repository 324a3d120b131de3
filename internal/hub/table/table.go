package table

import (
	"fmt"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/utils/clock"
)

// Kind is what a client sees a table as.
var Kind = metav1.SchemeGroupVersion.WithKind("Table")

// Printer makes tables of one kind's objects. All of it is required.
type Printer struct {
	Kind schema.GroupVersionKind
	// Include says what of its object a row carries beside the cells.
	Include metav1.IncludeObjectPolicy
	// Clock of ages.
	Clock clock.PassiveClock
}

// Include reads what a query asks for of each row's object; metadata where it says
// nothing. The error is the caller's.
func Include(query url.Values) (metav1.IncludeObjectPolicy, error) {
	switch policy := metav1.IncludeObjectPolicy(query.Get("includeObject")); policy {
	case "":
		return metav1.IncludeMetadata, nil
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return policy, nil
	default:
		return "", fmt.Errorf("includeObject is %q and must be None, Metadata or Object", policy)
	}
}

// form is what the tables of a kind look like.
type form struct {
	columns []metav1.TableColumnDefinition
	// cells are as many as columns.
	cells func(o runtime.Object, since since) ([]any, error)
}

// since says how long ago something was, as kubectl does.
type since func(metav1.Time) string

// forms are those of Kubernetes' own kinds.
var forms = map[schema.GroupVersionKind]form{
	corev1.SchemeGroupVersion.WithKind("Pod"):                of(podCells, podColumns...),
	corev1.SchemeGroupVersion.WithKind("Node"):               of(nodeCells, nodeColumns...),
	corev1.SchemeGroupVersion.WithKind("Service"):            of(serviceCells, serviceColumns...),
	discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"): of(sliceCells, sliceColumns...),
	corev1.SchemeGroupVersion.WithKind("Namespace"):          of(namespaceCells, namespaceColumns...),
	corev1.SchemeGroupVersion.WithKind("ConfigMap"):          of(configMapCells, configMapColumns...),
	corev1.SchemeGroupVersion.WithKind("Secret"):             of(secretCells, secretColumns...),
	networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"):  of(serviceCIDRCells, serviceCIDRColumns...),
	storagev1.SchemeGroupVersion.WithKind("CSIDriver"):       of(csiDriverCells, csiDriverColumns...),
	nodev1.SchemeGroupVersion.WithKind("RuntimeClass"):       of(runtimeClassCells, runtimeClassColumns...),
}

// of makes a form of the cells of one Go type.
func of[T runtime.Object](cells func(T, since) []any, columns ...metav1.TableColumnDefinition) form {
	return form{columns: columns, cells: func(o runtime.Object, ago since) ([]any, error) {
		typed, ok := o.(T)
		if !ok {
			return nil, fmt.Errorf("a %T in a table of another kind", o)
		}
		return cells(typed, ago), nil
	}}
}

func (p Printer) form() form {
	if f, ok := forms[p.Kind]; ok {
		return f
	}
	if f, ok := customForms[p.Kind]; ok {
		return f
	}
	return otherForm
}

// Columns are those of the kind's tables. Of a priority above 0 are those that only
// a wide list shows. The caller must not change them.
func (p Printer) Columns() []metav1.TableColumnDefinition { return p.form().columns }

// Row is that of an object: a typed one that says its kind, or, of a custom
// resource, an unstructured one. It keeps the object where it is included.
func (p Printer) Row(o runtime.Object) (metav1.TableRow, error) {
	var row metav1.TableRow
	m, err := meta.Accessor(o)
	if err != nil {
		return row, fmt.Errorf("a row of a %s: %w", p.Kind.Kind, err)
	}
	if row.Cells, err = p.form().cells(o, p.since); err != nil {
		return row, fmt.Errorf("a row of %s %s/%s: %w", p.Kind.Kind, m.GetNamespace(), m.GetName(), err)
	}
	if pod, ok := o.(*corev1.Pod); ok {
		row.Conditions = podConditions(pod.Status.Phase)
	}
	switch {
	case p.Include == metav1.IncludeObject:
		row.Object.Object = o
	case p.Include == metav1.IncludeNone && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "":
	default:
		// A bookmark says in its metadata that the initial events are over: that
		// must get through.
		partial := meta.AsPartialObjectMetadata(m)
		partial.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
		row.Object.Object = partial
	}
	return row, nil
}

// Table puts rows together; list is what the list of their objects would have. Later
// events of a watch leave the columns out: they were said in the first.
func (p Printer) Table(list metav1.ListMeta, columns bool, rows ...metav1.TableRow) *metav1.Table {
	t := &metav1.Table{ListMeta: list, Rows: append([]metav1.TableRow{}, rows...)}
	t.SetGroupVersionKind(Kind)
	if columns {
		t.ColumnDefinitions = p.Columns()
	}
	return t
}

func (p Printer) since(t metav1.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(p.Clock.Since(t.Time))
}

// What stands for a value that there is not.
const (
	none    = "<none>"
	unknown = "<unknown>"
	unset   = "<unset>"
)

// The columns that every kind has.
var (
	nameColumn = metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: "Name of the object."}
	ageColumn  = column("Age", "How long ago the object was created.")
)

func column(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

// wide is a column of wide lists.
func wide(name, description string) metav1.TableColumnDefinition {
	c := column(name, description)
	c.Priority = 1
	return c
}
