// Sets the reader's theme before anything is painted; without a choice the system's holds (see src/ui/theme.rs).
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; then the system's theme is shown.
}
