/* Trace function that has CPython handle a signal, as if it had come at the nth bytecode.

   A trace function that raises by itself raises between bytecodes, where CPython handles no signal;
   CPython 3.11 loses its count of references there. CPython's headers may not be installed, so the
   few functions of its stable interface are declared here. */

#include <stddef.h>
#include <string.h>

typedef struct object Object;

extern struct object _Py_NoneStruct, _Py_TrueStruct, _Py_FalseStruct;
extern int PyErr_SetInterruptEx(int signum);
extern int PyObject_SetAttrString(Object *object, const char *name, Object *value);
extern int PyUnicode_CompareWithASCIIString(Object *text, const char *ascii);
extern Object *PyFrame_GetCode(Object *frame);
extern Object *PyObject_GetAttrString(Object *object, const char *name);
extern const char *PyUnicode_AsUTF8AndSize(Object *text, ptrdiff_t *size);
extern void Py_DecRef(Object *object);
extern void Py_IncRef(Object *object);

static Object *self;
static char folder[4096];
static long steps, strike_at, again_after;
static int signum;

/* Count bytecodes of the files in a folder from 0; strike at the nth, and once more some later. */
void start(Object *function, const char *in, int signal, long at, long again) {
    self = function;
    strncpy(folder, in, sizeof folder - 1);
    signum = signal, strike_at = at, again_after = again, steps = 0;
}

long counted(void) { return steps; }

static int is_ours(Object *frame) {
    Object *code = PyFrame_GetCode(frame);  /* f_code would ask audit hooks */
    Object *file = PyObject_GetAttrString(code, "co_filename");
    int ours = strncmp(PyUnicode_AsUTF8AndSize(file, NULL), folder, strlen(folder)) == 0;
    Py_DecRef(file);
    Py_DecRef(code);
    return ours;
}

Object *trace(Object *frame, Object *event, Object *arg) {
    Object *next = &_Py_NoneStruct;
    (void)arg;
    if (PyUnicode_CompareWithASCIIString(event, "call") == 0) {
        if (is_ours(frame)) {
            PyObject_SetAttrString(frame, "f_trace_opcodes", &_Py_TrueStruct);
            PyObject_SetAttrString(frame, "f_trace_lines", &_Py_FalseStruct);
            next = self;
        }
    } else if (PyUnicode_CompareWithASCIIString(event, "opcode") == 0 && ++steps == strike_at) {
        strike_at = again_after ? steps + again_after : 0;
        again_after = 0;
        PyErr_SetInterruptEx(signum);
    }
    Py_IncRef(next);
    return next;
}
