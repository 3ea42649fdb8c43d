/* Files that cannot be read, for tests: to be preloaded. FAKE_UNREAD names a list of lines
 * `path<TAB>word`, by the paths' ends: EPERM, EACCES, ENODEV: opening fails so; HANG: it never
 * returns. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int ends(const char *path, const char *with) {
  size_t n = strlen(path), m = strlen(with);
  return n > m && path[n - m - 1] == '/' && !strcmp(path + n - m, with);
}

static int refused(const char *path) {
  static char text[1 << 16];
  static int size = -1;
  static __thread int inside;
  if (inside || !path) return 0;
  inside = 1;
  if (size < 0) {
    FILE *list = getenv("FAKE_UNREAD") ? fopen(getenv("FAKE_UNREAD"), "r") : NULL;
    size = list ? (int)fread(text, 1, sizeof text - 1, list) : 0;
    text[size] = 0;
    if (list) fclose(list);
  }
  int error = 0;
  char *real = size ? realpath(path, NULL) : NULL, *copy = real ? strdup(text) : NULL, *rest = copy;
  for (char *line; rest && (line = strsep(&rest, "\n"));) {
    char *word = strchr(line, '\t');
    if (!word) continue;
    *word++ = 0;
    if (!ends(real, line)) continue;
    if (!strcmp(word, "HANG")) for (;;) pause();
    error = !strcmp(word, "EPERM") ? EPERM : !strcmp(word, "EACCES") ? EACCES : ENODEV;
  }
  free(copy);
  free(real);
  inside = 0;
  errno = error ? error : errno;
  return error;
}

#define OPEN(name)                                                             \
  int name(const char *path, int flags, ...) {                                 \
    va_list more;                                                              \
    va_start(more, flags);                                                     \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;    \
    va_end(more);                                                              \
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);             \
    return refused(path) ? -1 : real(path, flags, mode);                       \
  }
OPEN(open)
OPEN(open64)

DIR *opendir(const char *path) {
  DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
  return refused(path) ? NULL : real(path);
}
