# shellcheck shell=bash
# What the scripts beside it share. To be sourced.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$(cd "$here/../.." && pwd)
ports=$home/deploy/ports.env

fail() { # code, message
  printf '%s: %s\n' "$(basename "$0")" "$2" >&2
  exit "$1"
}

names() { # every agent that has a port
  sed -n 's/^\([a-z_]*\)=[0-9]*$/\1/p' "$ports"
}

port_of() { # name -> its port; NAME_PORT in the environment wins
  local variable=${1^^}_PORT
  [[ " $(names | paste -sd' ') " == *" $1 "* ]] ||
    fail 2 "no agent is called '$1'; there are: $(names | paste -sd' ')"
  echo "${!variable:-$(sed -n "s/^$1=//p" "$ports")}"
}

show_help() { # the comment at the top of the script that was called
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}
