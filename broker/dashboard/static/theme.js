// Dark or light, before anything is drawn: as it was chosen here, else as the system has it.
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
